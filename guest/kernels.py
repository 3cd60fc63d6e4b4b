"""The kernels that minivmm can boot: the cache of fetched ones, and images named by path.

A fetched kernel is a directory RELEASE in the cache with vmlinuz, config and modules/ (what
/lib/modules/RELEASE is elsewhere). Where kernels come from is in debian.py.
"""

from __future__ import annotations

import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from minivmm.errors import HostError, ImageError
from minivmm.guest import debian
from minivmm.guest.files import read_image
from minivmm.runtime import cache_root

DEFAULT_VERSION = "6.12"
FETCH_COMMAND = "minivmm kernel fetch"
"""What messages tell the user to run."""

_SETUP_MAGIC = b"HdrS"  # at 0x202 of a bzImage; Documentation/arch/x86/boot.rst
_SETUP_MAGIC_OFFSET = 0x202
_KERNEL_VERSION = struct.Struct("<526xH")  # at 0x20E: where the version string is, less 0x200
_ELF_VERSION = re.compile(rb"Linux version (\S+) \(")  # linux_banner, in any uncompressed kernel


@dataclass(frozen=True)
class Kernel:
    """A kernel image, what `uname -r` will say (empty if unknown), its modules if there are any."""

    release: str
    image: Path
    modules: Path | None
    """A directory like /lib/modules/RELEASE."""


def kernels_root() -> Path:
    """The cache directory; created when missing."""
    root = cache_root() / "kernels"
    try:
        root.mkdir(exist_ok=True)
    except OSError as error:
        raise HostError(
            f"cannot write to {root.parent}: {error.strerror}: set XDG_CACHE_HOME"
        ) from None
    return root


def fetched() -> list[Kernel]:
    """All kernels in the cache, oldest version first."""
    found = [
        Kernel(path.name, path / "vmlinuz", path / "modules")
        for path in kernels_root().iterdir()
        if (path / "vmlinuz").is_file()
    ]
    return sorted(found, key=lambda kernel: version_key(kernel.release))


def newest() -> Kernel:
    """The cached kernel of the highest version. Raises HostError if none was fetched yet."""
    kernels = fetched()
    if not kernels:
        raise HostError(
            f"no kernel to boot: get one with `{FETCH_COMMAND}`, or name an image with -k"
        )
    return kernels[-1]


def find(name: str) -> Kernel:
    """The kernel in image file `name`, or the newest cached one of version or release `name`.

    Raises ImageError if there is neither.
    """
    if "/" in name or Path(name).is_file():
        return _from_image(Path(name))
    matching = [kernel for kernel in fetched() if is_version_of(name, kernel.release)]
    if not matching:
        known = ", ".join(kernel.release for kernel in fetched()) or "none"
        raise ImageError(
            f"kernel {name!r} is neither a file nor a fetched kernel (those are: {known}):"
            f" try `{FETCH_COMMAND} {name}`"
        )
    return matching[-1]


def fetch(
    version: str = DEFAULT_VERSION, progress: Callable[[str], None] = lambda line: None
) -> Kernel:
    """The newest Debian cloud kernel of `version` ("6.12", or a release), downloaded if need be.

    "Newest" as far as the host's package lists know. If they know none, it is the newest one in the
    cache; they are updated if there is none either. `progress` gets a line for each step. Raises
    HostError, with the cure, where Debian's tools or the network are missing.
    """
    cached = [kernel for kernel in fetched() if is_version_of(version, kernel.release)]
    exact = [kernel for kernel in cached if kernel.release == version]
    if exact:
        return exact[0]
    release = _newest_known(version, progress, update=not cached)
    if release is None:
        return cached[-1]
    target = kernels_root() / release
    if not (target / "vmlinuz").is_file():
        # Beside its place in the cache, so that one rename makes it appear complete.
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=kernels_root()) as work:
            progress(f"downloading Linux {release}")
            package = debian.download(debian.package_name(release), Path(work))
            progress(f"unpacking Linux {release}")
            _install(debian.unpack(package, Path(work) / "root"), release, target)
    return Kernel(release, target / "vmlinuz", target / "modules")


def is_version_of(version: str, release: str) -> bool:
    """True if `release` is `version` or continues it: "6.1" fits "6.1.0-56", but not "6.12.1"."""
    return re.fullmatch(rf"{re.escape(version)}([.+-].*)?", release) is not None


def version_key(release: str) -> tuple[tuple[int, int, str], ...]:
    """For sorting releases: digits compare as numbers, so that 6.12 comes after 6.1.9."""
    parts = re.findall(r"\d+|\D+", release)
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts)


def _newest_known(version: str, progress: Callable[[str], None], *, update: bool) -> str | None:
    """The newest release of `version` in the package lists, updated if they know none; or None."""
    progress(f"looking for Linux {version} in Debian's package lists")
    releases = _matching(version)
    if not releases and not update:
        return None
    if not releases:
        progress("updating the package lists")
        debian.update_lists()
        releases = _matching(version)
    if not releases:
        raise HostError(
            f"the package lists have no Debian cloud kernel {version}: see `apt-cache search"
            " --names-only cloud-amd64`; if that is empty, `apt-get update` could not reach the"
            " network or this is not Debian: name an image with -k and --modules"
        )
    return max(releases, key=version_key)


def _matching(version: str) -> Iterable[str]:
    return [release for release in debian.releases() if is_version_of(version, release)]


def _install(root: Path, release: str, target: Path) -> None:
    """Move what is needed from the unpacked package `root` to `target`, which appears at once."""
    stage = root.parent / "stage"
    stage.mkdir()
    try:
        shutil.move(root / "boot" / f"vmlinuz-{release}", stage / "vmlinuz")
        shutil.move(root / "boot" / f"config-{release}", stage / "config")
        # Where /lib is a link to /usr/lib, packages have it there.
        homes = [root / prefix / "modules" / release for prefix in ("lib", "usr/lib")]
        shutil.move(next(path for path in homes if path.is_dir()), stage / "modules")
    except (OSError, StopIteration) as error:
        raise HostError(
            f"the Debian package of Linux {release} is not laid out as expected"
            f" ({error or 'it has no modules'}): name an image with -k"
        ) from error
    try:
        stage.rename(target)
    except OSError as error:
        if not (target / "vmlinuz").is_file():  # else another process was faster, which is fine
            raise HostError(
                f"cannot put kernel {release} at {target}: {error.strerror}; remove what is there"
            ) from error


def _from_image(image: Path) -> Kernel:
    """A kernel named by path; its modules are beside it, or where the host has them installed."""
    release = image_release(read_image(image, "kernel"))
    homes = [image.parent / "modules"]
    if release:
        roots = (image.parent.parent, image.parent.parent / "usr", Path("/"))
        homes += [root / "lib/modules" / release for root in roots]
    return Kernel(release, image, next((home for home in homes if home.is_dir()), None))


def image_release(data: bytes) -> str:
    """What `uname -r` will say in the kernel with image `data`; empty if it cannot be told."""
    if data[_SETUP_MAGIC_OFFSET:].startswith(_SETUP_MAGIC):
        start = _KERNEL_VERSION.unpack_from(data)[0] + 0x200
        text = data[start : start + 256].partition(b"\0")[0]
        return text.decode("ascii", "replace").partition(" ")[0]
    match = _ELF_VERSION.search(data)
    return match.group(1).decode("ascii", "replace") if match else ""
