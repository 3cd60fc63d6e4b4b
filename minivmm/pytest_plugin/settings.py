"""Options of the command line and of pytest's configuration file, and what they mean for a test."""

from __future__ import annotations

import pytest

SCOPES = ("function", "class", "module", "package", "session")


def add(parser: pytest.Parser) -> None:
    """Declare them."""
    group = parser.getgroup("minivmm", "guests of minivmm")
    group.addoption(
        "--minivmm-kernel",
        action="append",
        metavar="LIST",
        help="kernels to test with, each in turn: releases of fetched ones or files, separated by"
        " commas (default: the setting minivmm_kernels, or the newest fetched)",
    )
    group.addoption(
        "--minivmm-device-options",
        action="append",
        metavar="KEYS",
        help="test with these options of devices (packed=on,event_idx=off); again: with others in"
        " turn",
    )
    group.addoption(
        "--minivmm-lab",
        action="store_true",
        help="run this session in the lab (see minivmm_lab)",
    )
    group.addoption(
        "--minivmm-missing",
        choices=("fail", "skip"),
        help="what becomes of tests whose kernel, or /dev/kvm, is not there (default: the setting"
        " minivmm_missing, or fail)",
    )
    parser.addini("minivmm_kernels", "kernels to test with, each in turn", "args", [])
    parser.addini("minivmm_lab", "run in the lab: never, always, or auto: if /dev/kvm is not fit")
    parser.addini("minivmm_lab_memory", "memory of the lab (3G)")
    parser.addini("minivmm_missing", "fail or skip")
    parser.addini(
        "minivmm_guest_restore",
        "boot each kind of machine once, and restore it from a snapshot for every test",
        "bool",
        False,
    )
    parser.addini("minivmm_guest_scope", f"how long `guest` is kept: {', '.join(SCOPES)}")


def kernels(config: pytest.Config) -> list[str]:
    """The kernels to test with; none: the newest, without a name in the tests' ids."""
    given: list[str] = config.getoption("minivmm_kernel") or config.getini("minivmm_kernels")
    return [name for text in given for name in text.split(",") if name]


def device_options(config: pytest.Config) -> list[str]:
    """The sets of device options to test with; none: those of the tests alone."""
    return list(config.getoption("minivmm_device_options") or [])


def skips_what_is_missing(config: pytest.Config) -> bool:
    """Whether a test without its kernel or /dev/kvm is skipped; it fails otherwise."""
    said = config.getoption("minivmm_missing") or config.getini("minivmm_missing")
    return _one_of("minivmm_missing", said, ("fail", "skip")) == "skip"


def guest_scope(config: pytest.Config) -> str:
    """The scope of the fixture `guest`."""
    return _one_of("minivmm_guest_scope", config.getini("minivmm_guest_scope"), SCOPES)


def restores(config: pytest.Config) -> bool:
    """Whether guests go on from a snapshot of one that was booted."""
    return bool(config.getini("minivmm_guest_restore"))


def lab(config: pytest.Config) -> str:
    """never, always, or auto."""
    if config.getoption("minivmm_lab"):
        return "always"
    return _one_of("minivmm_lab", config.getini("minivmm_lab"), ("never", "always", "auto"))


def kernel_of(item: pytest.Item, fixture: str) -> str | None:
    """The kernel that parametrization gave `item`; None: the newest."""
    call = getattr(item, "callspec", None)  # absent without parameters
    name = call.params.get(fixture) if call else None
    return None if name is None else str(name)


def _one_of(setting: str, value: str, choices: tuple[str, ...]) -> str:
    """`value`, or the first of `choices` if there is none. Raises pytest.UsageError."""
    if value and value not in choices:
        raise pytest.UsageError(f"{setting} = {value} is not one of {', '.join(choices)}")
    return value or choices[0]
