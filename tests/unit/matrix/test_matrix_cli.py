"""`minivmm matrix`: what is wrong is one line before anything boots; what was done is stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_guest import FakeGuest

from minivmm.cli import main
from minivmm.errors import ExitStatus, GuestFailure, HostError
from minivmm.guest.kernels import Kernel
from minivmm.matrix import Guest, Setup, plan, qemu
from minivmm.matrix.results import read

SUITE = """
from minivmm.matrix import scenario

AMOUNT = "256M"

@scenario()
def there_and_back(guest, note):
    note("grow-seconds-per-gib", guest.resize(guest.amount).check().seconds_per_gib)
    guest.resize(0).check()

@scenario(online="online_kernel")
def again(guest, note):
    hook(guest)
"""

Run = Callable[..., int]


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SUITE + "\ndef hook(guest):\n    pass\n")
    return path


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The verb, with kernels "6.1" and "6.12"; they boot as fakes, but "6.1" does not."""

    def find(name: str) -> Kernel:
        return Kernel(f"{name}.0-x", tmp_path / name, None)

    def our_boot(images: object, kernel: Kernel, options: object) -> Callable[[Setup], Guest]:
        def boot(setup: Setup) -> Guest:
            if kernel.release == "6.1.0-x":
                raise GuestFailure("no init found")
            return FakeGuest(setup)

        return boot

    monkeypatch.setattr(plan.kernels, "find", find)
    monkeypatch.setattr(plan, "_our_boot", our_boot)
    return lambda *words: main.run(["matrix", *map(str, words), "--accel", "kvm"])


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["standrad"], "unknown suite: 'standrad' (did you mean standard?)"),
        (["missing.py"], "suite missing.py does not exist"),
        (["quick", "--kernels", "9.9"], "kernel '9.9' is neither a file nor a fetched kernel"),
        (["quick", "--kernels", ","], "--kernels ',' names none"),
        (
            ["quick", "--device-options", "pakced=on"],
            "unknown property of virtio-mem-pci: 'pakced'",
        ),
        (["quick", "--device-options", "packed=maybe"], "packed: 'maybe' is neither on nor off"),
        (["quick", "--against", "xen"], "unknown VMM to compare with: 'xen'"),
        (["quick", "--repeat", "0"], "repeat 0 is out of range"),
        (["quick", "--amount", "3M"], "amount 3M is not usable: a multiple of 256M"),
        (["quick", "--resume"], "--resume needs --out"),
        (["quick", "--tolerance", "2"], "--tolerance is for --compare"),
        (["--compare", "a", "b", "--tolerance", "x"], "tolerance 'x' is no number"),
        (["--compare", "a", "b"], "cannot read a: No such file"),
        ([], "name a SUITE to run, or files by --compare or --markdown"),
        (["quick", "--markdown", "x"], "name a SUITE to run"),
    ],
)
def test_what_is_wrong_is_one_line(
    words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known = ["--kernels", __file__] if "--kernels" not in words and words else []
    status = main.run(["matrix", *words, *known, "--accel", "kvm"])

    assert status in (ExitStatus.USAGE, ExitStatus.FAILED)
    said = capsys.readouterr().err
    assert why in said
    assert said.count("\n") == 1


def test_a_results_file_that_cannot_be_written_is_told_before(
    run: Run, suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(suite, "--kernels", "6.12", "--out", "/proc/x.json") == ExitStatus.FAILED
    assert "cannot write /proc/x.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x = (", "mine.py:1: SyntaxError"),
        ("\nimport nothing_of_that_name\n", "mine.py:2: ModuleNotFoundError"),
        ("x = 1", "has no scenarios"),
        (
            "from minivmm.matrix import scenario\n@scenario(online='never')\ndef a(g, n): pass",
            "unknown policy: 'never'",
        ),
    ],
)
def test_a_suite_with_an_error_points_to_it(
    text: str, why: str, run: Run, suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite.write_text(text)
    assert run(suite, "--kernels", "6.12") == ExitStatus.USAGE
    assert why in capsys.readouterr().err


def test_a_kernel_that_does_not_boot_fails_its_cells_only(
    run: Run, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    status = run(suite, "--kernels", "6.1,6.12", "--device-options", "packed=on", "--out", out)

    assert status == ExitStatus.FAILED
    told = capsys.readouterr()
    row = ["6.1", "minivmm", "packed=on", "there-and-back", "failed", "does", "not", "boot:"]
    assert told.out.splitlines()[1].split()[:8] == row
    cells = read(out).cells
    assert [(cell.column.kernel, str(cell.outcome)) for cell in cells] == [
        ("6.1", "failed"),
        ("6.1", "failed"),
        ("6.12", "passed"),
        ("6.12", "passed"),
    ]
    assert cells[0].reason == "does not boot: no init found"
    assert cells[2].figures["grow-seconds-per-gib"]


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "Interrupted('ended by SIGTERM')"])
def test_ctrl_c_leaves_what_was_done(
    error: str, run: Run, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = "from minivmm.errors import Interrupted\n"
    suite.write_text(f"{head}{SUITE}\ndef hook(guest):\n    raise {error}\n")
    out = tmp_path / "out.json"

    assert run(suite, "--kernels", "6.12", "--out", out) == ExitStatus.INTERRUPTED

    stored = read(out)
    assert stored.interrupted
    assert [cell.scenario for cell in stored.cells] == ["there-and-back"]
    assert "1 cells are done" in capsys.readouterr().err
    first = stored.cells[0]

    suite.write_text(SUITE + "\ndef hook(guest):\n    pass\n")
    assert run(suite, "--kernels", "6.12", "--out", out, "--resume") == ExitStatus.OK
    again = read(out)
    assert not again.interrupted
    assert again.cells[0] == first
    assert [cell.scenario for cell in again.cells] == ["there-and-back", "again"]
    options = ("--kernels", "6.12", "--out", out, "--resume", "--repeat", "2")
    assert run(suite, *options) == ExitStatus.USAGE
    assert "is of another run (repeat 1, now 2)" in capsys.readouterr().err


def test_a_comparison_fails_if_a_cell_fails_that_had_passed(
    run: Run, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    assert run(suite, "--kernels", "6.12", "--out", good) == ExitStatus.OK
    suite.write_text(SUITE + "\ndef hook(guest):\n    raise ValueError('gone')\n")
    assert run(suite, "--kernels", "6.12", "--out", bad) == ExitStatus.FAILED
    capsys.readouterr()

    assert main.run(["matrix", "--compare", str(good), str(good)]) == ExitStatus.OK
    assert "2 cells are in both, 2 of them end as before" in capsys.readouterr().out
    assert main.run(["matrix", "--compare", str(good), str(bad)]) == ExitStatus.FAILED
    assert "now fails: 6.12 minivmm again: ValueError: gone" in capsys.readouterr().out
    assert main.run(["matrix", "--compare", str(bad), str(good), "--json"]) == ExitStatus.OK
    assert json.loads(capsys.readouterr().out)["mended"] == ["6.12 minivmm again"]


def test_options_that_a_peer_has_not_are_skipped_there(
    run: Run,
    suite: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(qemu, "properties", lambda: frozenset({"packed"}))
    monkeypatch.setattr(qemu, "version", lambda: "7.2")
    out = tmp_path / "out.json"
    options = ("--device-options", "thp=off", "--against", "qemu")
    assert run(suite, "--kernels", "6.12", "--out", out, *options) == ExitStatus.OK

    reasons = {cell.column.vmm: cell.reason for cell in read(out).cells}
    assert reasons == {"minivmm": "", "qemu": "QEMU 7.2 has no thp=off for virtio-mem-pci"}


def test_a_peer_that_is_not_installed_is_told_before(
    run: Run, suite: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> str:
        raise HostError("no qemu-system-x86_64 to compare with: `apt-get install ...`")

    monkeypatch.setattr(qemu, "version", missing)
    assert run(suite, "--kernels", "6.12", "--against", "qemu") == ExitStatus.FAILED
    assert "no qemu-system-x86_64" in capsys.readouterr().err


def test_in_the_lab_it_is_the_same_command_line(
    run: Run, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[str], int]] = []
    monkeypatch.setattr(
        "minivmm.cli.lab.run_words", lambda words, memory: seen.append((words, memory)) or 3
    )
    words = ["--kernels", "6.12", "--device-options", "", "--device-options", "packed=on,thp=off"]
    words += ["--repeat", "2", "--json", "--accel", "lab"]

    assert main.run(["matrix", str(suite), *words]) == 3

    inside, memory = seen[0]
    assert memory == (512 + 256) << 20
    parser = main.parser_for(inside)
    args = parser.parse_args(inside)
    assert (args.suite, args.kernels, args.accel) == (str(suite), "6.12", "kvm")
    assert args.device_options == ["", "packed=on,thp=off"]
    assert (args.repeat, args.json, args.out) == (2, True, None)
