"""Guests for tests: real kernels on a /dev/kvm (scripts/test brings these tests to one)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness import Guest

from minivmm.accel import probe

KERNELS = ("6.12", "6.1")


def pytest_configure() -> None:
    pytest.register_assert_rewrite("matrix_guest")  # its asserts tell as much as those of tests


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--only-kernel",
        choices=KERNELS,
        help="guest tests that boot this kernel only; those that boot any go with the last",
    )
    parser.addoption(
        "--moments",
        type=int,
        default=2,
        help="at how many moments of a resize a guest is saved (test_snapshot)",
    )
    parser.addoption(
        "--moves",
        type=int,
        default=1,
        help="how often a guest migrates during a resize, and how often either side is killed",
    )


def kernel_of(item: pytest.Item) -> str:
    """The kernel that a test boots."""
    call = getattr(item, "callspec", None)  # absent without parameters
    return str(call.params.get("kernel", KERNELS[-1]) if call else KERNELS[-1])


def _is_ours(item: pytest.Item) -> bool:
    return item.path.parent == Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("--only-kernel", None)
    if wanted:
        left = [item for item in items if _is_ours(item) and kernel_of(item) != wanted]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]
    limit = 300 + 30 * sum(config.getoption(name, 0) for name in ("--moments", "--moves"))
    for item in items:
        if _is_ours(item):
            item.add_marker(pytest.mark.guest)
            item.add_marker(pytest.mark.timeout(limit))


@pytest.fixture(scope="session", autouse=True)
def usable_kvm() -> None:
    """Fail, do not skip: scripts/test starts these tests only where they can run."""
    accel = probe()
    if not accel.usable:
        pytest.fail(f"{accel.reason}: run these tests with `minivmm lab -- pytest tests/guest`")


@pytest.fixture(scope="session", autouse=True)
def runtime_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A runtime directory of our own, with a short path."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("run")
        patch.setenv("MINIVMM_RUNTIME_DIR", str(path))
        yield path


@pytest.fixture(scope="session", params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> str:
    """Each supported stock kernel in turn."""
    return str(request.param)


@pytest.fixture(scope="module")
def guest(kernel: str) -> Iterator[Guest]:
    """A ready guest with one empty 4 GiB device, shared by the tests of a file."""
    with Guest("-k", kernel, "-m", "512M", "--device", DEVICE) as started:
        yield started


DEVICE = "virtio-mem-pci,id=vmem0,size=4G,block-size=2M,requested-size=0"
