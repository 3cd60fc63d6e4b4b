"""Commands survive the way to the guest: real shells are the judges."""

from __future__ import annotations

import os
import subprocess

import pytest

from minivmm.control import quoting
from minivmm.errors import UsageError

ANY_BYTES = os.fsdecode(bytes(range(1, 256)))


def run(shell: list[str], script: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*shell, script], capture_output=True, timeout=10, check=False)


def test_arguments_reach_the_command_byte_for_byte() -> None:
    argv = ["printf", "%s|", "", "a b", "it's", "$HOME `x` \\ \n", "-n", ANY_BYTES]

    result = run(["/bin/sh", "-c"], quoting.script(argv, {}, None))

    assert result.stdout == b"|".join(os.fsencode(word) for word in argv[2:]) + b"|"


def test_environment_and_directory_are_set() -> None:
    script = quoting.script(["sh", "-c", 'pwd; printf %s "$X"'], {"X": "it's\n"}, "/usr")

    assert run(["/bin/sh", "-c"], script).stdout == b"/usr\nit's\n"


def test_missing_directory_ends_with_126() -> None:
    script = quoting.script(["true"], {}, "/does/not/exist")

    assert run(["/bin/sh", "-c"], script).returncode == 126


def test_missing_command_ends_with_127() -> None:
    assert run(["/bin/sh", "-c"], quoting.script(["/no/such"], {}, None)).returncode == 127


def test_encoded_script_is_decoded_by_printf() -> None:
    data = bytes(range(1, 256)) + b"\n%s \\0101"

    encoded = quoting.encode(data)

    assert encoded.isascii() and encoded.isprintable() and " " not in encoded
    assert run(["/bin/sh", "-c"], f"printf %b '{encoded}'".encode()).stdout == data


@pytest.mark.parametrize(
    ("argv", "env", "cwd", "why"),
    [
        ([], {}, None, "no command"),
        (["a\0b"], {}, None, "NUL"),
        (["a"], {"A=B": "x"}, None, "A=B"),
        (["a"], {"": "x"}, None, "environment"),
        (["\ud800"], {}, None, "surrogates"),
        (["x" * quoting.MAX_SCRIPT], {}, None, "stdin"),
    ],
)
def test_impossible_commands_are_refused(
    argv: list[str], env: dict[str, str], cwd: str | None, why: str
) -> None:
    with pytest.raises(UsageError, match=why):
        quoting.script(argv, env, cwd)
