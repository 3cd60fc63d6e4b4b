"""What a machine does not load when it starts: start-up time is made of modules."""

from __future__ import annotations

import subprocess
import sys

import pytest

from minivmm.saved import Form

LATE = {
    "minivmm.kvm.saved_forms": "forms of saved states are loaded when one is saved",
    "pycparser": "what libc.py calls is parsed beforehand",
    "minivmm.control.qmp_session": "commands are loaded for the first client",
    "minivmm.control.hmp": "commands are loaded for the first client",
    "minivmm.control.gdb_session": "nobody debugs",
    "minivmm.migration.migration": "nothing moves",
    "minivmm.snapshot.taken": "nothing is saved",
    "minivmm.ui.server": "nobody looks",
}


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """Modules of a process that is about to boot a machine."""
    code = "import sys, minivmm.cli.boot, minivmm.cli.run; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(found.stdout.split())


@pytest.mark.parametrize("name", LATE)
def test_booting_does_not_load(loaded: set[str], name: str) -> None:
    assert "minivmm.machine" in loaded
    assert name not in loaded, LATE[name]


def test_every_form_that_devices_name_exists() -> None:
    import minivmm.machine  # noqa: F401 - with all devices

    forms = {
        value
        for name, module in sys.modules.items()
        if name.startswith("minivmm.")
        for value in vars(module).values()
        if isinstance(value, Form)
    }

    assert len(forms) >= 13
    for form in forms:
        assert hasattr(form.load(), "parse"), form
