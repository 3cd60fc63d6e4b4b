"""Completion: what is offered, and that bash, zsh and fish take it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from minivmm.cli import main
from minivmm.cli.completing import complete
from minivmm.cli.completion import SCRIPTS
from minivmm.runtime import MachineDir

PROMPT = "READY> "


def offered(line: str) -> list[str]:
    return [candidate.text for candidate in complete(line)]


def test_verbs_and_their_options() -> None:
    assert set(offered("minivmm ")) == set(main.VERBS)
    assert offered("minivmm resi") == ["resize"]
    assert offered("minivmm --ver") == ["--version"]
    assert "--wait" in offered("minivmm resize --")
    assert offered("minivmm boot --accel=k") == ["--accel=kvm"]
    assert offered("minivmm boot --accel l") == ["lab"]
    assert offered("minivmm bogus ") == []


def test_every_verb_can_be_completed(runtime_root: Path) -> None:
    for verb in main.VERBS:
        assert "--help" in offered(f"minivmm {verb} --")
        offered(f"minivmm {verb} ")


def test_devices_and_their_keys() -> None:
    assert "virtio-mem-pci," in offered("minivmm boot --device ")
    assert offered("minivmm boot --device virtio-mem-pci,requ") == [
        "virtio-mem-pci,requested-size="
    ]
    # What was given is not offered again.
    assert "virtio-mem-pci,id=a,size=" in offered("minivmm boot --device virtio-mem-pci,id=a,")
    assert "virtio-mem-pci,id=a,id=" not in offered("minivmm boot --device virtio-mem-pci,id=a,")
    assert offered("minivmm boot --device virtio-mem-pci,packed=o") == [
        "virtio-mem-pci,packed=on",
        "virtio-mem-pci,packed=off",
    ]
    assert offered("minivmm boot --mem-device siz") == ["size="]
    assert offered("minivmm boot --drive file=x,reado") == ["file=x,readonly="]
    assert offered("minivmm boot --numa node,mem=1G,cp") == ["node,mem=1G,cpus="]


def test_what_is_a_file_is_left_to_the_shell() -> None:
    for line in ("boot --config ", "boot -i ./", "boot -k ./", "exec vm1 -- "):
        assert offered(f"minivmm {line}") == [":files"]


@pytest.mark.usefixtures("live")
def test_running_machines_and_what_they_have() -> None:
    for verb in ("info", "resize", "stop", "why", "wait"):
        assert offered(f"minivmm {verb} v") == ["vm1"]
    assert offered("minivmm resize --device ") == ["vmem0"]
    assert offered("minivmm resize vm1 --device=v") == ["--device=vmem0"]
    assert offered("minivmm info vm1 ") == []
    assert offered("minivmm boot -n v") == []


@pytest.mark.usefixtures("live")
def test_commands_arguments_and_paths_of_a_machine() -> None:
    assert {"vm1", "query-status"} <= set(offered("minivmm qmp "))
    assert offered("minivmm qmp vm1 qom-s") == ["qom-set"]
    assert offered("minivmm qmp qom-set ") == ["path=", "property=", "value="]
    assert offered("minivmm qmp vm1 qom-set path=vmem0 ") == ["property=", "value="]
    assert offered("minivmm inspect st") == ["state"]
    assert offered("minivmm inspect vm1 na") == ["name"]


def test_open_quotes_and_nonsense_are_no_errors() -> None:
    for line in ("", "minivmm", "minivmm 'open", "minivmm boot --device 'vir", "minivmm -- "):
        offered(line)


def test_the_verb_prints_scripts_and_answers(capsys: pytest.CaptureFixture[str]) -> None:
    for shell, script in SCRIPTS.items():
        assert main.run(["completion", shell]) == 0
        assert capsys.readouterr().out == script.strip() + "\n"
    assert main.run(["completion", "zsh", "--", "minivmm resi"]) == 0
    assert capsys.readouterr().out == f"resize\t{main.VERBS['resize']}\n"
    # bash has cut the word at '=' and replaces what follows.
    assert main.run(["completion", "bash", "--", "minivmm boot --accel=k"]) == 0
    assert capsys.readouterr().out == "kvm\n"


@pytest.fixture
def environment(live: MachineDir, tmp_path: Path) -> dict[str, str]:
    """What the shells run in: our command first in PATH, and the fake machine's directory."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {
        **os.environ,
        "PATH": path,
        "HOME": str(tmp_path),
        "TERM": "dumb",
        "PS1": PROMPT,
        "MINIVMM_RUNTIME_DIR": str(live.path.parent),
    }


def shell(name: str) -> str:
    """The program. A shell that is missing is a failure: scripts/setup lab installs all three."""
    found = shutil.which(name)
    assert found, f"there is no {name} to test completion with: run `scripts/setup lab`"
    return found


LINES = [
    ("minivmm resi", "resize "),
    ("minivmm resize vm", "vm1 "),
    ("minivmm boot --device virtio-mem-pci,requ", "requested-size="),
]


class Terminal:
    """An interactive shell."""

    def __init__(self, words: list[str], environment: dict[str, str], setup: str) -> None:
        self.child = pexpect.spawn(
            words[0],
            words[1:],
            env=environment,
            encoding="utf-8",
            timeout=20,  # type: ignore[arg-type]
        )
        self.child.expect_exact(PROMPT)
        self.child.sendline(f"{setup}; echo up")
        self.child.expect_exact("up\r")
        self.child.expect_exact(PROMPT)

    def complete(self, line: str, expected: str) -> None:
        """Press TAB behind `line` and see `expected` end it."""
        self.child.send(f"{line}\t")
        self.child.expect_exact(expected)
        self.child.send("\x15\r")
        self.child.expect_exact(PROMPT)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.child.close(force=True)


def test_bash_completes(environment: dict[str, str], terminals: list[Terminal]) -> None:
    words = [shell("bash"), "--norc", "--noprofile", "-i"]
    terminals.append(Terminal(words, environment, 'eval "$(minivmm completion bash)"'))

    for line, end in LINES:
        typed = line.rpartition(" ")[2].rpartition(",")[2]
        terminals[0].complete(line, line + end.removeprefix(typed))


def test_zsh_completes(environment: dict[str, str], terminals: list[Terminal]) -> None:
    setup = 'autoload -U compinit && compinit -u -D; eval "$(minivmm completion zsh)"'
    terminals.append(Terminal([shell("zsh"), "-f", "-i"], environment, setup))

    for line, end in LINES:
        typed = line.rpartition(" ")[2].rpartition(",")[2]
        terminals[0].complete(line, end.removeprefix(typed))


def test_fish_completes(environment: dict[str, str]) -> None:
    for line, end in LINES:
        done = subprocess.run(
            [
                *(shell("fish"), "--no-config", "-c"),
                f"minivmm completion fish | source; complete -C '{line}'",
            ],
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert [row.partition("\t")[0] for row in done.stdout.splitlines()] == [
            line.rpartition(" ")[2].rpartition(",")[0] + ("," if "," in line else "") + end.strip()
        ]
