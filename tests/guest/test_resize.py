"""The main job: memory grows and shrinks, and both sides and the host agree about it."""

from __future__ import annotations

import json

from harness import Guest, minivmm

MIB = 1 << 20
GIB = 1 << 30


def test_grow_and_shrink_move_the_guests_total_exactly(guest: Guest) -> None:
    base = guest.memory_total()

    for size in (GIB, 256 * MIB, 512 * MIB, 0):
        guest.resize(size)

        guest.wait_until(lambda: guest.memory_total() - base == size, f"MemTotal for {size:#x}")  # noqa: B023
        assert guest.device()["requested-size"] == size


def test_memory_is_online_and_movable(guest: Guest) -> None:
    guest.resize(256 * MIB)

    zones = guest.shell(
        "for b in /sys/devices/system/memory/memory*; do [ ${b##*/memory} -ge 32 ] &&"
        " cat $b/state $b/valid_zones; done"
    ).split()

    assert zones.count("online") == 2
    assert set(zones) == {"online", "Movable"}
    guest.resize(0)


def test_host_holds_nothing_once_shrunk_to_zero(guest: Guest) -> None:
    guest.resize(512 * MIB)
    guest.shell(
        "mount -t tmpfs -o size=400m none /mnt && dd if=/dev/zero of=/mnt/x bs=1M count=300"
    )
    used = guest.device()["resident"]
    guest.shell("umount /mnt")

    guest.resize(0)

    assert used > 100 * MIB
    assert guest.device()["resident"] == 0


def test_content_of_plugged_memory_survives_resizing(guest: Guest) -> None:
    guest.resize(512 * MIB)
    guest.shell(
        "mount -t tmpfs -o size=200m none /mnt && dd if=/dev/urandom of=/mnt/x bs=1M count=100"
    )
    before = guest.shell("md5sum < /mnt/x")

    guest.resize(256 * MIB)
    guest.resize(GIB)

    assert guest.shell("md5sum < /mnt/x") == before
    guest.shell("umount /mnt")
    guest.resize(0)


def test_resize_verb_waits_and_reports(guest: Guest) -> None:
    grown = minivmm("resize", guest.name, "128M", "--wait=60")
    info = json.loads(minivmm("info", guest.name, "--json").stdout)
    odd = minivmm("resize", guest.name, "3M")

    assert grown.returncode == 0, grown.stderr
    assert info["memory-devices"][0]["size"] == 128 * MIB
    assert odd.returncode in (1, 2)
    assert "2M" in odd.stderr and "4M" in odd.stderr
    guest.resize(0)


def test_every_answer_was_an_acknowledgement(guest: Guest) -> None:
    tree = guest.qmp.execute("x-minivmm-inspect")

    answers = tree["board"]["devices"]["vmem0"]["model"]["answers"]
    assert answers["PLUG"]["ACK"] > 0
    assert all(set(kinds) == {"ACK"} for kinds in answers.values())
