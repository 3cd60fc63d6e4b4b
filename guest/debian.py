"""Debian's cloud kernels through apt: which there are, downloading one, unpacking it.

Packages are only downloaded and unpacked, never installed: nothing of the host changes but its
package lists.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from minivmm.errors import HostError

# Signed images only, which have no suffix; and no metapackages, which name two numbers only.
_PACKAGE = re.compile(r"linux-image-(\d+\.\d+\.\d+\S*-cloud-amd64)")

_CURE = "fetching kernels needs Debian's apt; elsewhere, name an image with -k and --modules"


def releases() -> list[str]:
    """Releases (`uname -r`) of the cloud kernels in the host's package lists, in no order."""
    output = _run(["apt-cache", "search", "--names-only", "^linux-image-.*-cloud-amd64$"])
    names = [line.split(" ", 1)[0] for line in output.splitlines()]
    return [match.group(1) for name in names if (match := _PACKAGE.fullmatch(name))]


def package_name(release: str) -> str:
    """The package of the kernel `release`."""
    return f"linux-image-{release}"


def update_lists() -> None:
    """Have apt get new package lists, through sudo where that is needed. Raises HostError."""
    command = ["apt-get", "update", "--quiet"]
    if os.geteuid() != 0:
        if shutil.which("sudo") is None:
            raise HostError("the package lists are empty or old: run `apt-get update` as root")
        command = ["sudo", *command]
    _run(command)


def download(package: str, directory: Path) -> Path:
    """The .deb file of `package`, downloaded into `directory`.

    Package lists age: a version that they name may be gone. So one failure updates them and tries
    again. Raises HostError.
    """
    command = ["apt-get", "download", "--quiet", package]
    try:
        _run(command, directory)
    except HostError:
        update_lists()
        _run(command, directory)
    found = sorted(directory.glob("*.deb"))
    if not found:
        raise HostError(f"`{' '.join(command)}` left no package: try it by hand")
    return found[-1]


def unpack(package: Path, directory: Path) -> Path:
    """Extract the files of `package` to `directory`, which is returned. Raises HostError."""
    _run(["dpkg-deb", "--extract", str(package), str(directory)])
    return directory


def _run(command: Sequence[str], directory: Path | None = None) -> str:
    """What `command` prints. Raises HostError with its last complaint, or the cure if missing."""
    # Standard error is kept, but sudo's question for a password goes to the terminal itself.
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
    except FileNotFoundError:
        raise HostError(f"{command[0]} not found: {_CURE}") from None
    if done.returncode != 0:
        complaints = [line for line in done.stderr.splitlines() if line.strip()]
        reason = complaints[-1] if complaints else f"status {done.returncode}"
        raise HostError(f"`{' '.join(command)}` failed: {reason} (is there a network? {_CURE})")
    return done.stdout
