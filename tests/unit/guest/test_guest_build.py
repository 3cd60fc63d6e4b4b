"""What is in the initramfs for which kernel."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import minivmm.guest
from minivmm.errors import ImageError
from minivmm.guest.build import build_initramfs

MakeTree = Callable[..., Path]
RELEASE = "6.9.1-test-amd64"
SCRIPTS = sorted(path.name for path in Path(minivmm.guest.__path__[0]).glob("*.sh"))

ALL_MODULES = {
    "virtio.ko": "",
    "virtio_ring.ko": "",
    "virtio_pci.ko": "virtio,virtio_ring",
    "virtio_console.ko": "virtio,virtio_ring",
    "virtio_mem.ko": "virtio_ring,virtio",
    "button.ko": "",
    "evdev.ko": "",
    "unrelated.ko": "",
}


def unpack(archive: bytes) -> dict[str, bytes]:
    """Names and data of a newc archive, links with their targets."""
    found: dict[str, bytes] = {}
    at = 0
    while True:
        size = int(archive[at + 54 : at + 62], 16)
        name_size = int(archive[at + 94 : at + 102], 16)
        name = archive[at + 110 : at + 109 + name_size].decode()
        start = (at + 110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = archive[start : start + size]
        at = (start + size + 3) // 4 * 4


@pytest.mark.usefixtures("fake_busybox")
def test_modules_are_ordered_and_the_power_button_comes_apart(make_tree: MakeTree) -> None:
    files = unpack(build_initramfs(RELEASE, make_tree(ALL_MODULES)))

    assert files["lib/modules/order"].decode().split() == [
        "virtio",
        "virtio_ring",
        "virtio_pci",
        "virtio_console",
        "virtio_mem",
    ]
    assert files["lib/modules/order.power"].decode().split() == ["button", "evdev"]
    assert files["lib/modules/virtio_mem.ko"].startswith(b"\x7fELF")
    assert "lib/modules/unrelated.ko" not in files


@pytest.mark.usefixtures("fake_busybox")
def test_builtin_and_missing_modules_are_left_out(make_tree: MakeTree) -> None:
    builtin = ("virtio.ko", "virtio_ring.ko", "virtio_pci.ko", "virtio_console.ko")
    tree = make_tree({"virtio_mem.ko": "virtio"}, builtin=builtin)

    files = unpack(build_initramfs(RELEASE, tree))

    assert files["lib/modules/order"] == b"virtio_mem\n"
    assert files["lib/modules/order.power"] == b""


@pytest.mark.usefixtures("fake_busybox")
def test_a_kernel_without_modules_gets_none() -> None:
    files = unpack(build_initramfs(None, None))

    assert not any(name.startswith("lib") for name in files)


@pytest.mark.usefixtures("fake_busybox")
def test_modules_of_another_kernel_are_refused(make_tree: MakeTree) -> None:
    with pytest.raises(ImageError, match=rf"is for {RELEASE}, but the kernel is 6\.1"):
        build_initramfs("6.1", make_tree(ALL_MODULES))


@pytest.mark.usefixtures("fake_busybox")
def test_modules_for_a_kernel_of_unknown_release_are_taken(make_tree: MakeTree) -> None:
    files = unpack(build_initramfs("", make_tree(ALL_MODULES)))

    assert "lib/modules/virtio_mem.ko" in files


def test_programs_and_places(fake_busybox: Path) -> None:
    files = unpack(build_initramfs(None, None))

    assert files["bin/busybox"] == fake_busybox.read_bytes()
    assert files["bin/sh"] == files["bin/ls"] == b"busybox"
    assert files["sbin"] == files["usr/bin"] == b"/bin"
    assert files["init"].startswith(b"#!/bin/sh\n")
    assert files["bin/agent"].startswith(b"#!/bin/sh\n")
    assert {"dev/console", "proc", "sys", "run", "tmp"} <= files.keys()


@pytest.mark.usefixtures("fake_busybox")
def test_same_inputs_give_same_bytes(make_tree: MakeTree) -> None:
    tree = make_tree(ALL_MODULES)

    assert build_initramfs(RELEASE, tree) == build_initramfs(RELEASE, tree)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("shell", ["sh", "busybox sh"])
def test_scripts_are_proper_shell(script: str, shell: str) -> None:
    command = shell.split()
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    path = Path(minivmm.guest.__path__[0]) / script

    checked = subprocess.run([*command, "-n", str(path)], capture_output=True, check=False)

    assert (checked.returncode, checked.stderr) == (0, b"")
