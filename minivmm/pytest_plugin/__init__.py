"""The pytest plugin: guests as fixtures, kernels and device options as parameters.

Loaded into every pytest run of an environment with minivmm, so that importing it must stay cheap:
what boots machines is imported by the fixtures. docs/testing-drivers.md tells how it is used.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from minivmm.pytest_plugin import conditions, settings
from minivmm.pytest_plugin.in_lab import run_in_lab, wanted_in_lab

if TYPE_CHECKING:
    from pathlib import Path

    from minivmm.api import Vm
    from minivmm.guest.kernels import Kernel
    from minivmm.pytest_plugin.bench import GuestFactory

KERNEL, DEVICES = "minivmm_kernel", "minivmm_device_options"
SAVED = "minivmm_saved"
"""Fixtures that are parametrized from the command line; tests use `kernel` and `guest`."""


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Options and settings."""
    settings.add(parser)
    _spare_rewriting(pluginmanager)


def pytest_configure(config: pytest.Config) -> None:
    """Markers."""
    conditions.register(config)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """With --minivmm-lab, have the whole session run in the lab; its status is ours."""
    return run_in_lab(config) if wanted_in_lab(config) else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each kernel, and for each set of device options, that were asked for."""
    for fixture, values in (
        (KERNEL, settings.kernels(metafunc.config)),
        (DEVICES, settings.device_options(metafunc.config)),
    ):
        if fixture in metafunc.fixturenames and values:
            metafunc.parametrize(fixture, values, indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, with the reason, what its markers say cannot run with its kernel or here."""
    for item in items:
        why = conditions.why_not(item, settings.kernel_of(item, KERNEL))
        if why is not None:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put what its machines tell beside a test that failed."""
    found = yield
    if found.failed and found.when != "teardown":
        for vm in _machines(item):
            from minivmm.api.report import report

            found.sections += [(f"minivmm: {heading}", text) for heading, text in report(vm)]
    return found


def _spare_rewriting(pluginmanager: pytest.PytestPluginManager) -> None:
    """Have pytest leave the asserts of minivmm as they are: a VMM is no helper of tests.

    It rewrites all packages of a distribution that has a plugin, which takes seconds (a minute in
    the lab) and slows down the path of each exit. There is no public way to decline.
    """
    marked: set[str] = getattr(pluginmanager.rewrite_hook, "_must_rewrite", set())
    marked.discard("minivmm")
    getattr(pluginmanager.rewrite_hook, "_marked_for_rewrite_cache", {}).clear()


def _machines(item: pytest.Item) -> list[Vm]:
    """The machines that a test was given, or made, as far as they are still there."""
    values: dict[str, Any] = getattr(item, "funcargs", {})
    found = [values["guest"]] if "guest" in values else []
    found += getattr(values.get("guest_factory"), "made", [])
    return [vm for vm in found if hasattr(vm, "engine") and not vm.engine.closed]


def _guest_scope(fixture_name: str, config: pytest.Config) -> Any:
    return settings.guest_scope(config)


@pytest.fixture(scope="session", name=KERNEL)
def _minivmm_kernel(request: pytest.FixtureRequest) -> str | None:
    """The kernel that --minivmm-kernel names for this test; None: the newest fetched."""
    return getattr(request, "param", None)


@pytest.fixture(scope="session", name=DEVICES)
def _minivmm_device_options(request: pytest.FixtureRequest) -> str:
    """The options that --minivmm-device-options adds to the devices of this test's machines."""
    return getattr(request, "param", "")


@pytest.fixture(scope="session")
def kernel(request: pytest.FixtureRequest, minivmm_kernel: str | None) -> Kernel:
    """The kernel under test: its release, image and modules.

    `pytest --minivmm-kernel 6.12,6.1` runs every test that uses it, or a guest, once for each.
    """
    from minivmm.pytest_plugin.bench import find_kernel

    return find_kernel(request.config, minivmm_kernel)


@pytest.fixture(scope="session", name=SAVED)
def _minivmm_saved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path | None:
    """Where snapshots are that guests go on from; None if they are booted."""
    return tmp_path_factory.mktemp("saved") if settings.restores(request.config) else None


@pytest.fixture
def guest_factory(
    request: pytest.FixtureRequest,
    kernel: Kernel,
    minivmm_device_options: str,
    minivmm_saved: Path | None,
) -> Iterator[GuestFactory]:
    """guest_factory(**options of minivmm.boot) boots a guest of this test; any number of them."""
    from minivmm.pytest_plugin.bench import GuestFactory

    with GuestFactory(request.config, kernel, minivmm_device_options, minivmm_saved) as factory:
        yield factory


@pytest.fixture(scope=_guest_scope)
def guest(
    request: pytest.FixtureRequest,
    kernel: Kernel,
    minivmm_device_options: str,
    minivmm_saved: Path | None,
) -> Iterator[Vm]:
    """A guest with one empty 4 GiB virtio-mem device, vmem0, that runs commands (minivmm.Vm).

    Other options come from @pytest.mark.minivmm_machine(memory="1G", devices=[...]), or from
    @pytest.mark.parametrize("guest", [{...}, {...}], indirect=True). The setting
    `minivmm_guest_scope` says for how long one is kept: function (the default), class, module, ...
    With `minivmm_guest_restore = true` only the first of each kind is booted; the others go on from
    a snapshot of it.
    """
    from minivmm.pytest_plugin.bench import GuestFactory

    options = conditions.machine_options(request.node) | getattr(request, "param", {})
    with GuestFactory(request.config, kernel, minivmm_device_options, minivmm_saved) as factory:
        yield factory(**options)
