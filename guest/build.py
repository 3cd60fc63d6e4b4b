"""Puts a guest's first file system together: busybox, init, agent and the modules it needs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from minivmm.errors import ImageError
from minivmm.guest.busybox import applets, find_busybox
from minivmm.guest.initramfs import Archive
from minivmm.guest.modules import ModuleTree

MODULES = ("virtio_pci", "virtio_console", "virtio_mem")
"""Loaded before anything else runs."""
POWER_MODULES = ("button", "evdev")
"""Loaded beside the agent: they make the ACPI power button an input device."""

DIRECTORIES = (
    *("/dev", "/proc", "/sys", "/run", "/tmp", "/etc", "/mnt", "/root"),
    *("/etc/dev", "/etc/dev/pts", "/etc/dev/shm"),
)
DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}
"""What programs expect in /dev and devtmpfs does not make; init copies /etc/dev there."""

NO_LINKS = {"busybox", "modprobe"}
"""Not under these names: a stock kernel asks modprobe for a dozen modules while it boots, and every
answer "no" costs a process and, emulated, a hundred exits. Init knows what to load, and when."""

_FSTAB = """\
proc /proc proc defaults 0 0
sysfs /sys sysfs defaults 0 0
devtmpfs /dev devtmpfs defaults 0 0
tmpfs /run tmpfs mode=755 0 0
tmpfs /tmp tmpfs mode=1777 0 0
"""
_PASSWD = "root:x:0:0:root:/:/bin/sh\n"
_GROUP = "root:x:0:\n"


def build_initramfs(
    kernel_release: str | None, modules: Path | None, drivers: Iterable[str] = ()
) -> bytes:
    """An uncompressed initramfs for the kernel whose modules are below `modules`.

    `drivers` are modules that this machine's devices need beside MODULES.

    `modules` is a /lib/modules/RELEASE directory; with None, all drivers must be built in.
    `kernel_release` is what `uname -r` will say, if known: modules of another kernel are refused.
    The same inputs give the same bytes.

    Raises HostError without a static busybox, ImageError for a damaged or foreign module. A kernel
    without virtio_mem is no error: init says so on the console.
    """
    busybox = find_busybox()
    archive = Archive()
    for directory in DIRECTORIES:
        archive.add_directory(directory)
    for name, target in DEVICE_LINKS.items():
        archive.add_link(f"/etc/dev/{name}", target)
    # The kernel opens this for init's output before init can mount anything.
    archive.add_character_device("/dev/console", 5, 1)
    _add_programs(archive, busybox)
    archive.add_file("/etc/fstab", _FSTAB.encode())
    archive.add_file("/etc/passwd", _PASSWD.encode())
    archive.add_file("/etc/group", _GROUP.encode())
    if modules is not None:
        _add_modules(archive, ModuleTree(modules), kernel_release, (*MODULES, *drivers))
    return archive.build()


def _add_programs(archive: Archive, busybox: Path) -> None:
    """busybox under all its names in /bin, init and agent; other program directories lead there."""
    archive.add_file("/bin/busybox", busybox.read_bytes(), 0o755)
    for name in applets(busybox):
        if name not in NO_LINKS:
            archive.add_link(f"/bin/{name}", "busybox")
    for path in ("/sbin", "/usr/bin", "/usr/sbin"):
        archive.add_link(path, "/bin")
    archive.add_file("/init", _script("init.sh"), 0o755)
    archive.add_file("/bin/agent", _script("agent.sh"), 0o755)


def _add_modules(
    archive: Archive, tree: ModuleTree, kernel_release: str | None, wanted: tuple[str, ...]
) -> None:
    """Modules and, for init, the orders to load them in."""
    early, _ = tree.load_order(wanted)
    both, _ = tree.load_order((*wanted, *POWER_MODULES))
    late = [module for module in both if module not in early]
    for module in both:
        if kernel_release and module.release != kernel_release:
            raise ImageError(
                f"kernel module {module.path} is for {module.release}, but the kernel is"
                f" {kernel_release}: give the modules of that kernel (--modules)"
            )
        archive.add_file(f"/lib/modules/{module.name}.ko", module.data)
    for name, modules in (("order", early), ("order.power", late)):
        text = "".join(f"{module.name}\n" for module in modules)
        archive.add_file(f"/lib/modules/{name}", text.encode())


def _script(name: str) -> bytes:
    return (Path(__file__).parent / name).read_bytes()
