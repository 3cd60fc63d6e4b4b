"""How machines end and start again: reboot, poweroff, panic, triple fault, signals, time-outs."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from harness import Guest, minivmm

from minivmm import runtime
from minivmm.stats import kvm_counters

MIB = 1 << 20
DEVICE = ("--device", "virtio-mem-pci,id=vmem0,size=2G,requested-size=256M")


def test_reboot_unplugs_everything_and_plugs_again(kernel: str) -> None:
    with Guest("-k", kernel, *DEVICE) as guest:
        guest.wait_until(lambda: guest.device()["size"] == 256 * MIB, "plugged at boot")
        sizes: list[int] = []

        guest.qmp.execute("qom-set", path="vmem0", property="requested-size", value=128 * MIB)
        guest.wait_until(lambda: guest.device()["size"] == 128 * MIB, "shrunk")
        guest.shell("(sleep 0.5; reboot -f) &")
        while (event := guest.qmp.event(30)) and event["event"] != "RESET":
            if event["event"] == "MEMORY_DEVICE_SIZE_CHANGE":
                sizes.append(event["data"]["size"])

        assert event is not None and event["data"]["guest"] is True
        assert guest.run("true", timeout=120).status == 0
        guest.wait_until(lambda: guest.device()["size"] == 128 * MIB, "plugged again")
        assert guest.device()["requested-size"] == 128 * MIB
        assert guest.process.is_alive()


def test_system_reset_by_qmp(kernel: str) -> None:
    with Guest("-k", kernel, *DEVICE, "-p", "2") as guest:
        first = guest.shell("cat /proc/sys/kernel/random/boot_id")

        guest.qmp.execute("system_reset")
        guest.wait_until(lambda: not guest.info()["agent"]["ready"], "reset")

        assert guest.run("true", timeout=120).status == 0
        assert guest.shell("cat /proc/sys/kernel/random/boot_id") != first


def test_powerdown_and_stop_end_orderly(kernel: str) -> None:
    with Guest("-k", kernel) as guest:
        done = minivmm("stop", guest.name)

        assert done.returncode == 0, done.stderr
        assert guest.wait() == 0
        assert not guest.directory.path.exists()


def test_stop_and_cont_freeze_the_guest() -> None:
    with Guest() as guest:
        guest.qmp.execute("stop")
        assert guest.qmp.execute("query-status")["status"] == "paused"
        time.sleep(0.5)
        exits = kvm_counters(guest.process.pid)["kvm exits"]
        time.sleep(1)
        assert kvm_counters(guest.process.pid)["kvm exits"] == exits > 0
        guest.qmp.execute("cont")

        assert guest.qmp.execute("query-status")["running"] is True
        assert guest.shell("echo alive") == "alive"


@pytest.mark.parametrize("cause", ["panic", "triple fault"])
def test_a_dying_guest_ends_with_134_and_the_reason(
    kernel: str, cause: str, tmp_path: Path
) -> None:
    status = tmp_path / "status"
    append = ["-a", "reboot=triple"] if cause == "triple fault" else []
    script = "echo c >/proc/sysrq-trigger" if cause == "panic" else "reboot -f"

    done = minivmm(
        "boot", "-k", kernel, "--accel", "kvm", "--status", str(status), *append, "--", "sh", "-c",
        f"{script}; sleep 60",
    )  # fmt: skip

    assert done.returncode == 134, done.stderr
    wanted = "sysrq triggered crash" if cause == "panic" else "triple-fault"
    assert wanted in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(status.read_text())["cause"] == "guest-failure"


def test_timeout_ends_with_124() -> None:
    done = minivmm("boot", "--accel", "kvm", "--timeout", "5s", "--", "sleep", "1000")

    assert done.returncode == 124
    assert "--timeout" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_and_leave_nothing(number: signal.Signals) -> None:
    with Guest() as guest:
        os.kill(guest.process.pid, number)

        assert guest.wait() == 130
        assert not guest.directory.path.exists()
        assert "Traceback" not in guest.output()


def test_a_running_name_is_taken() -> None:
    with Guest() as guest:
        done = minivmm("boot", "--accel", "kvm", "-n", guest.name)

        assert done.returncode == 125
        assert "running already" in done.stderr
        assert [entry.name for entry in runtime.running()] == [guest.name]
