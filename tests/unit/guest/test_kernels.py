"""The kernel cache, with Debian's tools played by small scripts."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest

from minivmm.errors import HostError, ImageError
from minivmm.guest import kernels

APT_CACHE = r"""#!/bin/sh
echo "apt-cache $*" >>"$FAKE/log"
[ -f "$FAKE/lists" ] && sed 's/$/ - Linux/' "$FAKE/lists"
exit 0
"""
APT_GET = r"""#!/bin/sh
echo "apt-get $*" >>"$FAKE/log"
case $1 in
update) cp "$FAKE/mirror" "$FAKE/lists" ;;
download)
    for package; do :; done
    grep -qx "$package" "$FAKE/mirror" || { echo "E: Failed to fetch $package" >&2; exit 100; }
    echo "$package" >"${package}_1_amd64.deb" ;;
esac
"""
DPKG_DEB = r"""#!/bin/sh
release=$(sed s/linux-image-// "$2")
mkdir -p "$3/boot" "$3/$FAKE_LIB/modules/$release/kernel"
echo image >"$3/boot/vmlinuz-$release"
echo config >"$3/boot/config-$release"
echo kernel/a.ko >"$3/$FAKE_LIB/modules/$release/modules.order"
"""

PACKAGES = (
    "linux-image-6.1.0-47-cloud-amd64-dbg",
    "linux-image-6.1.0-9-cloud-amd64",
    "linux-image-6.1.0-56-cloud-amd64-unsigned",
    "linux-image-6.1.0-47-cloud-amd64",
    "linux-image-6.12-cloud-amd64",
    "linux-image-6.12.9+deb12-cloud-amd64",
    "linux-image-6.12.117+deb12-cloud-amd64",
)


class FakeDebian:
    """Fake apt and dpkg; file `mirror` is what exists, `lists` what the host knows."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        self.bin.mkdir()
        for name, text in (("apt-cache", APT_CACHE), ("apt-get", APT_GET), ("dpkg-deb", DPKG_DEB)):
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)
        self.set("mirror", PACKAGES)

    def set(self, name: str, packages: tuple[str, ...]) -> None:
        (self.root / name).write_text("".join(f"{package}\n" for package in packages))

    def calls(self) -> list[str]:
        log = self.root / "log"
        return (
            [line.split(" -", 1)[0] for line in log.read_text().splitlines()]
            if log.exists()
            else []
        )


@pytest.fixture
def debian_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDebian:
    (tmp_path / "fake").mkdir()
    fake = FakeDebian(tmp_path / "fake")
    monkeypatch.setenv("PATH", f"{fake.bin}:/usr/bin:/bin")
    monkeypatch.setenv("FAKE", str(fake.root))
    monkeypatch.setenv("FAKE_LIB", "lib")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return fake


def add_kernel(release: str) -> Path:
    directory = kernels.kernels_root() / release
    (directory / "modules").mkdir(parents=True)
    (directory / "vmlinuz").write_text("image")
    return directory


def test_fetch_takes_the_newest_signed_image(debian_host: FakeDebian) -> None:
    debian_host.set("lists", PACKAGES)

    kernel = kernels.fetch("6.12")

    assert kernel.release == "6.12.117+deb12-cloud-amd64"
    assert kernel.image.read_text() == "image\n"
    assert kernel.modules is not None
    assert (kernel.modules / "modules.order").exists()
    assert (kernel.image.parent / "config").exists()
    assert "apt-get update" not in debian_host.calls()


def test_fetch_6_1_is_not_6_12(debian_host: FakeDebian) -> None:
    debian_host.set("lists", PACKAGES)

    assert kernels.fetch("6.1").release == "6.1.0-47-cloud-amd64"


def test_fetch_of_a_full_release(debian_host: FakeDebian) -> None:
    debian_host.set("lists", PACKAGES)

    assert kernels.fetch("6.1.0-9-cloud-amd64").release == "6.1.0-9-cloud-amd64"


def test_fetch_updates_empty_lists(debian_host: FakeDebian) -> None:
    steps: list[str] = []

    kernel = kernels.fetch("6.12", steps.append)

    assert kernel.release == "6.12.117+deb12-cloud-amd64"
    assert "apt-get update" in debian_host.calls()
    assert [step.split()[0] for step in steps] == [
        "looking",
        "updating",
        "downloading",
        "unpacking",
    ]


def test_fetch_updates_lists_that_name_a_package_that_is_gone(debian_host: FakeDebian) -> None:
    debian_host.set("lists", PACKAGES)
    debian_host.set("mirror", ("linux-image-6.1.0-56-cloud-amd64",))

    with pytest.raises(HostError, match=r"Failed to fetch linux-image-6\.1\.0-47"):
        kernels.fetch("6.1")
    assert kernels.fetch("6.1").release == "6.1.0-56-cloud-amd64"


def test_second_fetch_downloads_nothing(debian_host: FakeDebian) -> None:
    debian_host.set("lists", PACKAGES)
    kernels.fetch("6.12")
    (debian_host.root / "log").unlink()

    assert kernels.fetch("6.12").release == "6.12.117+deb12-cloud-amd64"
    assert debian_host.calls() == ["apt-cache search"]


def test_fetch_of_a_cached_release_asks_nobody(debian_host: FakeDebian) -> None:
    add_kernel("6.1.0-9-cloud-amd64")

    assert kernels.fetch("6.1.0-9-cloud-amd64").release == "6.1.0-9-cloud-amd64"
    assert debian_host.calls() == []


def test_fetch_takes_the_cached_one_when_the_lists_know_none(debian_host: FakeDebian) -> None:
    add_kernel("6.12.9+deb12-cloud-amd64")

    assert kernels.fetch("6.12").release == "6.12.9+deb12-cloud-amd64"
    assert debian_host.calls() == ["apt-cache search"]


def test_fetch_gets_a_newer_one_when_the_lists_know_it(debian_host: FakeDebian) -> None:
    debian_host.set("lists", PACKAGES)
    add_kernel("6.12.9+deb12-cloud-amd64")

    assert kernels.fetch("6.12").release == "6.12.117+deb12-cloud-amd64"


def test_fetch_understands_packages_with_merged_usr(
    debian_host: FakeDebian, monkeypatch: pytest.MonkeyPatch
) -> None:
    debian_host.set("lists", PACKAGES)
    monkeypatch.setenv("FAKE_LIB", "usr/lib")

    kernel = kernels.fetch("6.12")

    assert kernel.modules is not None
    assert (kernel.modules / "modules.order").exists()


def test_failed_fetch_leaves_nothing_behind(debian_host: FakeDebian) -> None:
    debian_host.set("lists", PACKAGES)
    (debian_host.bin / "dpkg-deb").write_text("#!/bin/sh\nexit 0\n")

    with pytest.raises(HostError, match="not laid out as expected"):
        kernels.fetch("6.12")
    assert list(kernels.kernels_root().iterdir()) == []


def test_unknown_version_is_a_host_error(debian_host: FakeDebian) -> None:
    with pytest.raises(HostError, match=r"no Debian cloud kernel 4\.4"):
        kernels.fetch("4.4")


def test_without_apt_the_cure_is_named(
    debian_host: FakeDebian, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))

    with pytest.raises(HostError, match=r"apt-cache not found: .* -k"):
        kernels.fetch("6.12")


def test_update_without_root_and_sudo_says_so(
    debian_host: FakeDebian, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr(shutil, "which", lambda name: None)

    with pytest.raises(HostError, match="`apt-get update` as root"):
        kernels.fetch("6.12")


def test_update_uses_sudo_for_users(
    debian_host: FakeDebian, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    (debian_host.bin / "sudo").write_text('#!/bin/sh\necho sudo >>"$FAKE/log"\nexec "$@"\n')
    (debian_host.bin / "sudo").chmod(0o755)

    kernels.fetch("6.12")

    assert debian_host.calls()[1:3] == ["sudo", "apt-get update"]


def test_fetched_is_in_version_order(debian_host: FakeDebian) -> None:
    for release in ("6.12.9-x", "6.1.0-56-x", "6.12.117-x", "6.1.0-9-x", "5.10.0-x"):
        add_kernel(release)

    found = [kernel.release for kernel in kernels.fetched()]

    assert found == ["5.10.0-x", "6.1.0-9-x", "6.1.0-56-x", "6.12.9-x", "6.12.117-x"]
    assert kernels.newest().release == "6.12.117-x"


def test_incomplete_directories_are_no_kernels(debian_host: FakeDebian) -> None:
    (kernels.kernels_root() / "6.1.0").mkdir()

    assert kernels.fetched() == []


def test_newest_of_nothing_names_the_cure(debian_host: FakeDebian) -> None:
    with pytest.raises(HostError, match=kernels.FETCH_COMMAND):
        kernels.newest()


def test_find_by_version_takes_the_newest(debian_host: FakeDebian) -> None:
    for release in ("6.12.9-x", "6.1.0-56-x", "6.1.0-9-x"):
        add_kernel(release)

    assert kernels.find("6.1").release == "6.1.0-56-x"
    assert kernels.find("6.1.0-9-x").release == "6.1.0-9-x"


def test_find_of_neither_lists_what_there_is(debian_host: FakeDebian) -> None:
    add_kernel("6.1.0-9-x")

    with pytest.raises(ImageError, match=r"6\.1\.0-9-x.*kernel fetch 7\.7"):
        kernels.find("7.7")


def bzimage(version: str) -> bytes:
    """The parts of a bzImage that tell its version: Documentation/arch/x86/boot.rst."""
    image = bytearray(0x1000)
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x20E, 0x600 - 0x200)
    text = f"{version} (builder@host) #1 SMP".encode() + b"\0"
    image[0x600 : 0x600 + len(text)] = text
    return bytes(image)


def test_find_by_path_reads_the_release_and_finds_modules(tmp_path: Path) -> None:
    (tmp_path / "boot").mkdir()
    (tmp_path / "lib/modules/6.7.8-mine").mkdir(parents=True)
    image = tmp_path / "boot" / "vmlinuz"
    image.write_bytes(bzimage("6.7.8-mine"))

    kernel = kernels.find(str(image))

    assert kernel == kernels.Kernel("6.7.8-mine", image, tmp_path / "lib/modules/6.7.8-mine")


def test_find_by_path_of_a_cached_image_finds_its_modules(debian_host: FakeDebian) -> None:
    directory = add_kernel("6.1.0-9-x")

    assert kernels.find(str(directory / "vmlinuz")).modules == directory / "modules"


def test_find_of_a_missing_path_is_an_image_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot read kernel"):
        kernels.find(str(tmp_path / "vmlinuz"))


def test_release_of_an_uncompressed_kernel() -> None:
    banner = b"\x7fELF....Linux version 6.12.1-test (gcc) #1\n\0"

    assert kernels.image_release(banner) == "6.12.1-test"


@pytest.mark.parametrize("data", [b"", b"\x7fELF", bytes(0x400)])
def test_release_of_something_else_is_empty(data: bytes) -> None:
    assert kernels.image_release(data) == ""
