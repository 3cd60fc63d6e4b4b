"""A real guest moves from process to process: under load, during a resize, while it reboots.

It is the same guest in all tests, so that it is booted once. `--moves N` moves it N times at random
moments of a resize, and kills N targets at random moments.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from harness import Guest, minivmm

from minivmm.errors import MinivmmError

MIB = 1 << 20
OPTIONS = ("-m", "256M", "--device", "virtio-mem-pci,id=vmem0,size=1G,requested-size=0")

FILL = """
mkdir -p /tmp/load && mount -t tmpfs none /tmp/load
dd if=/dev/urandom of=/tmp/load/kept bs=1M count=16 2>/dev/null
sha256sum </tmp/load/kept
"""

CHECK = "sha256sum </tmp/load/kept"
BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
LOAD = (
    "(while [ ! -e /tmp/load/stop ]; do head -c 4M /tmp/load/kept >/tmp/load/copy; done)"
    " >/dev/null 2>&1 </dev/null &"
)


OVER = ("completed", "failed", "cancelled")


class Arrival(Guest):
    """`minivmm boot --incoming`: a guest that is not there yet."""

    def __init__(self, uri: str, *options: str) -> None:
        super().__init__("--incoming", uri, *options)

    def wait_until_up(self) -> None:
        self.wait_for_state("inmigrate")

    def wait_for_state(self, wanted: str) -> None:
        """Until query-status says so."""
        self.wait_until(lambda: status(self) == wanted, f"machine that is {wanted}")


class Journey:
    """A guest on its way through processes."""

    def __init__(self, guests: ExitStack, directory: Path, kernel: str) -> None:
        self._guests = guests
        self._directory = directory
        self._options = ("-k", kernel, *OPTIONS)
        self._count = 0
        self.digest = ""
        """What CHECK says in the guest."""
        self.guest = guests.enter_context(Guest(*self._options))

    def prepare(self) -> tuple[str, Arrival]:
        self._count += 1
        uri = f"unix:{self._directory}/m{self._count}"
        return uri, self._guests.enter_context(Arrival(uri, *self._options))

    def go(self, **parameters: int) -> tuple[str, Arrival]:
        """Begin to move, with parameters of the migration."""
        uri, there = self.prepare()
        limits = {"max-bandwidth": 0, "downtime-limit": 5000} | {
            key.replace("_", "-"): value for key, value in parameters.items()
        }
        self.guest.qmp.request("migrate-set-parameters", limits)
        self.guest.qmp.execute("migrate", uri=uri)
        return uri, there

    def progress(self) -> dict[str, Any]:
        found: dict[str, Any] = self.guest.qmp.execute("query-migrate")
        return found

    def arrive(self, there: Arrival) -> dict[str, Any]:
        """The guest is `there` from now on; what query-migrate says of the way."""
        self.guest.wait_until(lambda: self.progress()["status"] in OVER, "end of migration")
        found = self.progress()
        assert found["status"] == "completed", f"{found} {there.output()}"
        here = self.guest.plugged()
        self.guest.qmp.execute("quit")
        self.guest = there
        there.wait_for_state("running")
        assert there.plugged() == here
        return found


def status(guest: Guest) -> str:
    return str(guest.qmp.execute("query-status")["status"])


@pytest.fixture
def moves(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--moves"))


@pytest.fixture(scope="module")
def journey(kernel: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journey]:
    with ExitStack() as guests:
        yield Journey(guests, tmp_path_factory.mktemp("m"), kernel)


def test_under_load(journey: Journey) -> None:
    guest = journey.guest
    guest.resize(128 * MIB)
    journey.digest = guest.shell(FILL)
    guest.shell(LOAD)
    boot = guest.shell(BOOT_ID)

    _, there = journey.go()
    found = journey.arrive(there)

    assert there.run("true", timeout=60).status == 0
    assert there.shell(CHECK) == journey.digest
    assert there.shell(BOOT_ID) == boot
    assert there.plugged() == {"vmem0": 128 * MIB}
    assert found["ram"]["total"] == (256 + 128) * MIB
    assert found["ram"]["dirty-sync-count"] >= 2
    there.shell("touch /tmp/load/stop")
    there.resize(64 * MIB)


def test_during_a_resize(journey: Journey, moves: int) -> None:
    chosen = random.Random(moves)
    for _ in range(moves):
        move_while_resizing(journey, chosen.randrange(128, 512, 4) * MIB, chosen.random())


def move_while_resizing(journey: Journey, size: int, moment: float) -> None:
    """By the command line, `moment` seconds after `size` was requested."""
    guest = journey.guest
    uri, there = journey.prepare()
    guest.request(vmem0=size)
    time.sleep(moment)

    done = minivmm("migrate", guest.name, uri, "--bandwidth", "0", "--downtime", "5s")

    assert done.returncode == 0, done.stderr + there.output()
    assert "has moved in" in done.stderr
    assert guest.wait() == 0
    assert not guest.directory.path.exists()
    journey.guest = there
    there.wait_for_state("running")
    there.wait_until(lambda: there.plugged() == {"vmem0": size}, f"{size} plugged")
    assert there.device()["requested-size"] == size
    assert there.shell(CHECK) == journey.digest


def test_a_target_that_is_killed_costs_nothing(journey: Journey, moves: int) -> None:
    chosen = random.Random(moves)
    for _ in range(moves):
        guest = journey.guest
        before = guest.plugged()
        _, there = journey.go(max_bandwidth=16 * MIB)
        time.sleep(chosen.random() * 3)

        there.kill()
        guest.wait_until(lambda: journey.progress()["status"] in OVER, "end of migration")

        assert journey.progress()["status"] == "failed"
        assert status(guest) == "running"
        assert guest.shell(CHECK) == journey.digest
        assert guest.plugged() == before
    guest.resize(128 * MIB)


def test_with_a_reboot_on_the_way(journey: Journey) -> None:
    """It keeps what is plugged until it has arrived, and then begins anew by UNPLUG_ALL."""
    guest = journey.guest
    boot = guest.shell(BOOT_ID)
    _, there = journey.go(max_bandwidth=4 * MIB)
    guest.wait_until(lambda: journey.progress()["status"] == "active", "active migration")

    guest.shell("(sleep 0.2; reboot -f) >/dev/null 2>&1 </dev/null &")
    while (event := guest.qmp.event(30)) and event["event"] != "RESET":
        pass
    assert event is not None and event["data"]["guest"] is True
    assert guest.plugged() == {"vmem0": 128 * MIB}
    guest.qmp.execute("migrate-set-parameters", max_bandwidth=0)
    journey.arrive(there)

    assert there.run("true", timeout=120).status == 0
    assert there.shell(BOOT_ID) != boot
    there.wait_until(lambda: answers(there).get("UNPLUG_ALL", {}).get("ACK", 0) > 0, "UNPLUG_ALL")
    there.wait_until(lambda: there.plugged() == {"vmem0": 128 * MIB}, "plugged again")


def test_a_source_that_is_killed_leaves_no_target(
    journey: Journey, moves: int, tmp_path: Path
) -> None:
    """Or all of the guest, if it had been handed over by then."""
    if moves > 1:
        saved = minivmm("snapshot", journey.guest.name, str(tmp_path / "s"))
        assert saved.returncode == 0, saved.stderr
    _, there = journey.go(max_bandwidth=1 * MIB)
    journey.guest.wait_until(lambda: journey.progress()["status"] == "active", "active migration")

    journey.guest.kill()

    assert came_to_nothing(there)
    chosen = random.Random(moves)
    for _ in range(moves - 1):
        kill_while_moving(journey, tmp_path / "s", chosen.random() * 4)


def kill_while_moving(journey: Journey, saved: Path, moment: float) -> None:
    """The source, at full speed, `moment` seconds after it began."""
    with Guest("--restore", str(saved)) as guest:
        boot, plugged = guest.shell(BOOT_ID), guest.plugged()
        journey.guest = guest
        _, there = journey.go()
        time.sleep(moment)
        guest.kill()
    there.wait_until(lambda: not there.process.is_alive() or arrived(there), "an end")
    if there.process.is_alive():
        print(f"handed over by {moment:.2f} s")
        assert there.shell(BOOT_ID) == boot
        assert there.plugged() == plugged
        there.kill()
    else:
        print(f"not handed over by {moment:.2f} s")
        assert came_to_nothing(there)


def arrived(there: Arrival) -> bool:
    try:
        return status(there) == "running"
    except (OSError, MinivmmError):  # it is about to end
        return False


def came_to_nothing(there: Arrival) -> bool:
    """The target ended, said why, and left nothing."""
    assert there.wait() == 125
    assert "the connection to the source is lost" in there.output()
    assert "Traceback" not in there.output()
    return not there.directory.path.exists()


def answers(guest: Guest) -> dict[str, dict[str, int]]:
    """How often requests got which answer, of the process where the guest is now."""
    path = "board.devices.vmem0.model.answers"
    found: dict[str, dict[str, int]] = guest.qmp.execute("x-minivmm-inspect", path=path)
    return found
