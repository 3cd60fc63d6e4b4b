"""GuestFactory: what the fixtures boot with, for one test and one kernel; imported when used."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NoReturn, Unpack, cast

import pytest

from minivmm.api import Device, VirtioMem, Vm, boot
from minivmm.api.plan import BootOptions, Option, has_option
from minivmm.closing import Closing
from minivmm.errors import HostError, ImageError, UsageError
from minivmm.guest import kernels
from minivmm.guest.kernels import Kernel
from minivmm.machine_spec import DEVICE_TYPES
from minivmm.options import parse_pairs
from minivmm.pytest_plugin.settings import skips_what_is_missing


def find_kernel(config: pytest.Config, name: str | None) -> Kernel:
    """The kernel of that name, or the newest fetched. Fails the test, or skips it, without."""
    try:
        return kernels.newest() if name is None else kernels.find(name)
    except (HostError, ImageError) as error:
        missing(config, error)


def missing(config: pytest.Config, error: Exception) -> NoReturn:
    """Fail, or skip, the test that cannot run here: `error` says why, and what helps."""
    if skips_what_is_missing(config):
        pytest.skip(str(error))
    pytest.fail(str(error), pytrace=False)


class GuestFactory(Closing):
    """Boots guests of `kernel`, with `device_options` (packed=on,...) on all that have them.

    Call it with the options of minivmm.boot; without devices= there is one empty 4 GiB virtio-mem
    device, vmem0. At the end of its `with` all of them are closed. With `saved`, a directory, each
    kind of machine is booted once and kept there as a snapshot, which they go on from.
    """

    def __init__(
        self, config: pytest.Config, kernel: Kernel, device_options: str, saved: Path | None
    ) -> None:
        self.made: list[Vm] = []
        self._config = config
        self._kernel = kernel
        self._saved = saved
        pairs = parse_pairs(f",{device_options}")[1] if device_options else {}
        self._varied = cast(dict[str, Option], pairs)

    def __call__(self, kernel: str | Path | None = None, **options: Unpack[BootOptions]) -> Vm:
        """A guest that is ready; what `boot` raises fails the test, a host that lacks /dev/kvm
        fails or skips it (minivmm_missing).
        """
        wanted = options.get("devices", [VirtioMem("4G")])
        devices = [Device.parse(one) if isinstance(one, str) else one for one in wanted]
        options["devices"] = self._vary(devices)
        image = self._kernel.image if kernel is None else kernel
        try:
            if self._saved is None or not options.get("ready", True):
                vm = boot(image, **options)
            else:
                vm = self._restore(self._saved, image, options)
        except (HostError, ImageError) as error:
            missing(self._config, error)
        self.made.append(vm)
        return vm

    def close(self) -> None:
        """End all of them."""
        for vm in self.made:
            vm.close()

    def _restore(self, saved: Path, image: str | Path, options: BootOptions) -> Vm:
        """Go on from the snapshot of such a machine, which is taken first if there is none."""
        apart = ("name", "sockets", "timeout")
        kind = repr((str(image), sorted((k, v) for k, v in options.items() if k not in apart)))
        place = saved / hashlib.sha256(kind.encode()).hexdigest()[:16]
        if not place.exists():
            with boot(image, **options) as vm:
                vm.snapshot(place)
        given: dict[str, Any] = {k: v for k, v in options.items() if k in (*apart, "shell")}
        return boot(restore=place, **given)

    def _vary(self, devices: list[Device]) -> list[Device]:
        for key in self._varied:
            if not any(has_option(driver, key) for driver in DEVICE_TYPES):
                raise UsageError(f"--minivmm-device-options {key}: no device has that")
            if not any(has_option(device.driver, key) for device in devices):
                pytest.skip(f"no device of this test has {key}, which is what would be varied")
        return [device.varied(self._varied) for device in devices]
