"""The human monitor's language: help, aliases, quotes, flags; and the lines with no recording."""

from __future__ import annotations

from typing import Any

import pytest

from minivmm.control import qmp  # noqa: F401 - fills the table of commands
from minivmm.control.face import Context
from minivmm.control.hmp import execute
from minivmm.control.hmp_info import INFO
from minivmm.control.hmp_lines import LINES
from minivmm.units import MIB


@pytest.fixture
def context(wired: Any) -> Context:
    wired.start_drivers()
    return Context(wired.machine, wired.machine.agent)


def test_help_explains_every_line(context: Context) -> None:
    shown = "\n".join([*execute(context, "help"), *execute(context, "info")])

    assert "stop|s -- pause the machine" in shown
    assert "qom-set [-j] path property value -- set a property; -j: the value is JSON" in shown
    assert "info virtio-queue-status path queue -- " in shown
    for line in (*LINES, *INFO):
        assert line.usage in shown
    assert execute(context, "?") == execute(context, "help")


def test_help_of_one_line(context: Context) -> None:
    assert execute(context, "help stop") == ["stop|s -- pause the machine"]
    assert execute(context, "help info numa") == ["info numa -- nodes, their CPUs and memory"]
    assert execute(context, "help info bogus") == ["unknown command: 'info bogus'"]
    assert execute(context, "help info") == execute(context, "info")


def test_short_names_do_the_same(context: Context, wired: Any) -> None:
    assert execute(context, "s") == []
    assert wired.machine.state == "paused"
    assert execute(context, "c") == []
    assert wired.machine.state == "running"


def test_every_name_is_known(context: Context) -> None:
    known = [name for line in LINES for name in line.names if name not in ("quit", "q")]
    known += [f"info {name}" for line in INFO for name in line.names]

    assert all("unknown command" not in str(execute(context, name)) for name in known)


def test_quotes_flags_and_numbers(context: Context, wired: Any) -> None:
    device = wired.machine.memory_devices["vmem0"]

    assert execute(context, 'qom-set "vmem0" "requested-size" 128M') == []
    assert device.requested_size == 128 * MIB
    assert execute(context, "qom-set -j vmem0 requested-size 4194304") == []
    assert device.requested_size == 4 * MIB
    assert execute(context, "qom-set -j vmem0 requested-size {") == [
        "Error: JSON parse error, '{' is no value"
    ]
    assert execute(context, 'qom-set vmem0 "requested-size 2M') == [
        "qom-set: string expected",
        'Try "help qom-set" for more information',
    ]
    path = "/machine/peripheral/vmem0/virtio-backend"
    status = execute(context, f"info virtio-queue-status {path} 0x0")
    assert "    num:          128" in status


def test_virtio_status_names_what_is_negotiated(context: Context) -> None:
    shown = "\n".join(execute(context, "info virtio-status vmem0"))

    assert "  device_name:             virtio-mem\n" in shown
    assert "  started:                 true\n" in shown
    assert "\tVIRTIO_CONFIG_S_DRIVER_OK: the driver is up,\n" in shown
    assert "\tVIRTIO_MEM_F_ACPI_PXM: " in shown


def test_the_device_tree_shows_options_and_places(context: Context) -> None:
    execute(context, "qom-set vmem0 requested-size 128M")
    shown = execute(context, "info qtree")

    assert shown[:2] == ["bus: main-system-bus", "  type System"]
    assert '      dev: virtio-mem-pci, id "vmem0"' in shown
    assert "        requested-size = 134217728 (0x8000000)" in shown
    assert "        packed = true" in shown
    assert any("bar 0: mem at 0x" in line for line in shown)
    assert '          dev: virtio-rng-device, id ""' in shown


def test_the_object_tree(context: Context) -> None:
    shown = execute(context, "info qom-tree")

    assert shown[0] == "/machine (minivmm-machine)"
    assert "    /vmem0 (virtio-mem-pci)" in shown
    assert "      /virtio-backend (virtio-mem-device)" in shown
    assert "    /device[1] (host-x86_64-cpu)" in shown
    assert execute(context, "info qom-tree vmem0")[0].startswith("/machine/peripheral/vmem0 (")


def test_a_queue_element_for_people(context: Context) -> None:
    shown = execute(context, "info virtio-queue-element balloon0 0")

    assert "  device_name: virtio-balloon" in shown
    assert execute(context, "info virtio-queue-element rng0 0") == [
        "Error: Packed ring not supported"
    ]


def test_properties_of_every_device_can_be_read(context: Context) -> None:
    assert execute(context, "qom-get rng0 packed") == ["true"]
    assert execute(context, "qom-get disk0 readonly") == ["false"]
    assert "guest-stats-polling-interval (int)" in execute(context, "qom-list balloon0")
    assert execute(context, "qom-set rng0 packed off") == [
        "Error: Attempt to set property 'packed' on anonymous device (type 'virtio-rng-pci')"
        " after it was realized"
    ]
