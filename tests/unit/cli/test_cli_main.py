"""The command as a whole: verbs, help, exit statuses, errors, and what starting it loads."""

import subprocess
import sys
from pathlib import Path

import pytest

from minivmm import runtime
from minivmm.cli import main
from minivmm.errors import ExitStatus, NoSuchMachine
from minivmm.runtime import MachineDir

SLOW = {"asyncio", "construct", "cffi", "rich", "multiprocessing"}


def modules_after(*words: str) -> set[str]:
    """Top-level modules that `minivmm WORDS` has loaded when it ends."""
    code = (
        "import sys; from minivmm.cli.main import run\n"
        "try:\n run(sys.argv[1:])\nexcept SystemExit:\n pass\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=30
    )
    return set(done.stderr.split())


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main.run(["--help"])

    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in main.VERBS)


@pytest.mark.parametrize("verb", list(main.VERBS))
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main.run([verb, "--help"])

    assert end.value.code == 0
    assert f"minivmm {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "VERB"),
        (["bott"], "did you mean boot?"),
        (["list", "--jsn"], "did you mean --json?"),
        (["list", "extra"], "'extra'"),
        (["list", "--", "cmd"], "no command after --"),
        (["resize", "vm1", "1G", "--waiting=3s"], "did you mean --wait?"),
    ],
)
def test_wrong_usage_is_status_2_and_one_line(
    words: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(words) == ExitStatus.USAGE

    printed = capsys.readouterr().err
    assert what in printed
    assert printed.startswith("minivmm: ") and printed.count("\n") == 1


@pytest.mark.parametrize("verb", ["boot", "lab", "exec"])
def test_wrong_usage_beside_a_command_is_no_status_of_the_commands(verb: str) -> None:
    assert main.run([verb, "--bogus", "--", "true"]) == ExitStatus.MINIVMM_FAILED


def test_the_unforeseen_is_one_line_without_debug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> list[MachineDir]:
        raise MemoryError("two\nlines")

    monkeypatch.setattr(runtime, "running", fail)

    assert main.run(["list"]) == ExitStatus.FAILED
    printed = capsys.readouterr().err
    assert printed == "minivmm: internal error: MemoryError: two\\nlines (--debug shows where)\n"
    with pytest.raises(MemoryError):
        main.run(["list", "--debug"])


def test_closed_standard_streams_are_not_given_to_files_opened_later(runtime_root: Path) -> None:
    code = (
        "import os, sys; from minivmm.cli.main import run\n"
        "status = run(['list'])\n"
        "ok = [os.readlink(f'/proc/self/fd/{n}') for n in range(3)] == ['/dev/null'] * 3\n"
        "os._exit(status if ok else 99)"
    )
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code], timeout=30
    )
    assert done.returncode == 0


def test_errors_are_one_line_and_have_the_verbs_status(
    runtime_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["info", "nope"]) == ExitStatus.NOT_RUNNING
    assert capsys.readouterr().err == (
        "minivmm: no VM named 'nope' is running (see `minivmm list`)\n"
    )


def test_debug_shows_the_traceback(runtime_root: Path) -> None:
    for words in (["--debug", "info", "nope"], ["info", "nope", "--debug"]):
        with pytest.raises(NoSuchMachine):
            main.run(words)


def test_boot_fails_with_125_for_what_a_control_verb_calls_usage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main.run(["boot", "-m", "12x"]) == ExitStatus.MINIVMM_FAILED
    assert capsys.readouterr().err.count("\n") == 1


def test_exec_without_a_machine_is_125(runtime_root: Path) -> None:
    assert main.run(["exec", "nope", "--", "true"]) == ExitStatus.MINIVMM_FAILED


def test_exit_codes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["help", "exit-codes"]) == 0

    printed = capsys.readouterr().out
    assert all(f"\n{int(status)} " in printed for status in ExitStatus)


def test_help_of_an_unknown_topic_is_refused() -> None:
    assert main.run(["help", "bogus"]) == ExitStatus.USAGE


def test_help_loads_nothing_slow() -> None:
    assert not modules_after("--help") & {*SLOW, "dataclasses", "inspect", "json"}


def test_starting_takes_few_modules(live: MachineDir) -> None:
    """Time is lost to other work on this machine; modules are not. scripts/bench cli has times."""
    code = "import sys; print(len(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    bare = int(done.stdout)

    assert len(modules_after("--help")) - bare <= 35
    assert len(modules_after("resize", "vm1", "0")) - bare <= 90


def test_control_verbs_load_nothing_slow(live: MachineDir) -> None:
    """They talk to a running VM here; the environment names its runtime directory."""
    for words in (["list"], ["info", "vm1"], ["resize", "vm1", "0"]):
        loaded = modules_after(*words)
        assert not loaded & SLOW
        assert "minivmm.control.client" in loaded


def test_a_closed_pipe_is_no_traceback(live: MachineDir) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m minivmm list | true"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stderr == ""
