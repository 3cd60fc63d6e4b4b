"""A running guest by its control socket: qmp-shell drives it, and it tells what Linux sees."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from harness import Guest

GIB = 1 << 30


def test_qmp_shell_grows_the_guest(guest: Guest) -> None:
    shell = str(Path(sys.executable).with_name("qmp-shell"))
    commands = [
        f"qom-set path=vmem0 property=requested-size value={GIB}",
        "query-memory-devices",
    ]

    asked = subprocess.run(
        [shell, str(guest.directory.qmp_socket)],
        input="\n".join(commands) + "\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    guest.wait_until(lambda: guest.device()["size"] == GIB, "1 GiB plugged")
    devices = guest.qmp.execute("query-memory-devices")

    assert "error" not in asked.stdout, asked.stdout
    assert f'"requested-size": {GIB}' in asked.stdout.replace("'", '"')
    assert devices[0]["type"] == "virtio-mem"
    assert devices[0]["data"]["size"] == GIB
    summary = guest.qmp.execute("query-memory-size-summary")
    assert summary == {"base-memory": 512 << 20, "plugged-memory": GIB}
    guest.resize(0)


def test_virtio_status_is_what_the_driver_negotiated(guest: Guest) -> None:
    """Features as the guest's own /sys has them: a string with the lowest bit first."""
    for device in guest.qmp.execute("x-query-virtio"):
        status = guest.qmp.execute("x-query-virtio-status", path=device["path"])
        assert status["started"] is True
        assert "unknown-dev-features" not in status["guest-features"]
        for index in range(status["num-vqs"]):
            queue = guest.qmp.execute(
                "x-query-virtio-queue-status", path=device["path"], queue=index
            )
            assert queue["inuse"] <= queue["vring-num"]
    status = guest.qmp.execute("x-query-virtio-status", path="vmem0")
    named = {
        one.partition(":")[0]
        for one in status["guest-features"]["transports"] + status["guest-features"]["dev-features"]
    }
    slot = next(
        row["slot"]
        for row in guest.qmp.execute("query-pci")[0]["devices"]
        if row["qdev_id"] == "vmem0"
    )
    bits = guest.shell(f"cat /sys/bus/pci/devices/0000:00:{slot:02x}.0/virtio*/features").strip()
    negotiated = {bit for bit, digit in enumerate(bits) if digit == "1"}
    assert ("VIRTIO_F_VERSION_1" in named) == (32 in negotiated)
    assert ("VIRTIO_RING_F_EVENT_IDX" in named) == (29 in negotiated)
    assert ("VIRTIO_MEM_F_ACPI_PXM" in named) == (0 in negotiated)
    assert len(named) == len(negotiated)


def test_cpus_and_functions_are_those_that_exist(guest: Guest) -> None:
    cpus = guest.qmp.execute("query-cpus-fast")
    pid = guest.qmp.execute("x-minivmm-info")["pid"]
    functions = guest.qmp.execute("query-pci")[0]["devices"]
    listed = guest.shell("cat /sys/bus/pci/devices/*/vendor /sys/bus/pci/devices/*/device").split()

    assert len(cpus) == int(guest.shell("nproc"))
    for cpu in cpus:
        assert Path(f"/proc/{pid}/task/{cpu['thread-id']}").exists()
    ids = [f"{row['id'][key]:#06x}" for key in ("vendor", "device") for row in functions]
    assert listed == ids
