"""resolve: from the spec's words to bytes, and one line with a remedy when that fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from minivmm import guest_image
from minivmm.devices.virtio_blk.spec import VirtioBlkSpec
from minivmm.devices.virtio_rng.spec import VirtioRngSpec
from minivmm.errors import HostError, ImageError, MinivmmError
from minivmm.guest_image import resolve
from minivmm.machine_spec import MachineSpec


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; our own initramfs is only a note of what it was made for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        guest_image,
        "build_initramfs",
        lambda release, modules, drivers: " ".join([release, str(modules), *drivers]).encode(),
    )
    return tmp_path / "cache" / "minivmm" / "kernels"


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinuz"
    path.write_bytes(b"kernel")
    return path


def fetch(cache: Path, release: str) -> Path:
    directory = cache / release
    (directory / "modules").mkdir(parents=True)
    (directory / "vmlinuz").write_bytes(release.encode())
    return directory


def failure(spec: MachineSpec) -> MinivmmError:
    with pytest.raises(MinivmmError) as caught:
        resolve(spec, shell=False)
    assert "\n" not in str(caught.value)
    return caught.value


def test_the_newest_fetched_kernel_is_the_default(cache: Path) -> None:
    fetch(cache, "6.1.0-cloud")
    newest = fetch(cache, "6.12.1-cloud")

    image = resolve(MachineSpec(), shell=False)

    assert image.kernel == b"6.12.1-cloud"
    assert image.name == str(newest / "vmlinuz")
    assert image.initrd == f"6.12.1-cloud {newest / 'modules'}".encode()


def test_drivers_of_the_devices_and_no_others_are_put_into_the_initramfs(cache: Path) -> None:
    modules = fetch(cache, "6.12.1-cloud") / "modules"
    devices = (VirtioRngSpec(), VirtioBlkSpec(file="d"), VirtioBlkSpec(id="two", file="e"))

    image = resolve(MachineSpec(devices=devices), shell=False)

    assert image.initrd == f"6.12.1-cloud {modules} virtio_blk virtio_rng".encode()


def test_a_kernel_by_version(cache: Path) -> None:
    fetch(cache, "6.1.0-cloud")
    fetch(cache, "6.12.1-cloud")

    assert resolve(MachineSpec(kernel="6.1"), shell=False).kernel == b"6.1.0-cloud"


def test_files_of_the_users_own(kernel: Path, tmp_path: Path) -> None:
    (tmp_path / "initrd").write_bytes(b"initrd")
    spec = MachineSpec(kernel=str(kernel), initrd=str(tmp_path / "initrd"))

    image = resolve(spec, shell=False)

    assert (image.kernel, image.initrd) == (b"kernel", b"initrd")


def test_the_command_line_ends_with_the_users_words(kernel: Path) -> None:
    spec = MachineSpec(kernel=str(kernel), online="online_kernel", append=("loglevel=7", "x=y"))

    words = resolve(spec, shell=False).cmdline.split()

    assert words[-2:] == ["loglevel=7", "x=y"]
    assert {"console=ttyS0", "panic=-1", "memhp_default_state=online_kernel"} <= set(words)
    assert not any(word.startswith("minivmm.shell") for word in words)
    assert "minivmm.shell=hvc0" in resolve(spec, shell=True).cmdline.split()
    serial = replace(spec, console="ttyS0")
    assert "minivmm.shell=ttyS0" in resolve(serial, shell=True).cmdline.split()


def test_no_kernel_at_all() -> None:
    error = failure(MachineSpec())

    assert isinstance(error, HostError)
    assert "minivmm kernel fetch" in str(error)
    assert "-k" in str(error)


def test_an_unknown_version_names_those_there_are(cache: Path) -> None:
    fetch(cache, "6.1.0-cloud")

    error = failure(MachineSpec(kernel="5.4"))

    assert isinstance(error, ImageError)
    assert "'5.4'" in str(error)
    assert "6.1.0-cloud" in str(error)
    assert "minivmm kernel fetch 5.4" in str(error)


def test_a_kernel_file_that_is_not_there(tmp_path: Path) -> None:
    error = failure(MachineSpec(kernel=str(tmp_path / "missing")))

    assert isinstance(error, ImageError)
    assert str(tmp_path / "missing") in str(error)


@pytest.mark.parametrize("name", ["missing", "folder"])
def test_an_initrd_that_cannot_be_read(kernel: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()

    error = failure(MachineSpec(kernel=str(kernel), initrd=str(tmp_path / name)))

    assert isinstance(error, ImageError)
    assert f"initrd {tmp_path / name}" in str(error)
    assert "name a" in str(error)


def test_modules_that_are_not_there(kernel: Path, tmp_path: Path) -> None:
    error = failure(MachineSpec(kernel=str(kernel), modules=str(tmp_path / "missing")))

    assert isinstance(error, ImageError)
    assert str(tmp_path / "missing") in str(error)
    assert "--modules" in str(error)


def test_a_kernel_without_modules_is_fine(kernel: Path) -> None:
    assert resolve(MachineSpec(kernel=str(kernel)), shell=False).initrd == b" None"
