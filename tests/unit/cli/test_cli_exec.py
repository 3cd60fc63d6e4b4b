"""`exec --json`: outputs and status as one object, whatever the bytes."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from minivmm import runtime
from minivmm.cli import exec_, main


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (b"text\n", {"stdout": "text\n"}),
        (b"\xff\0", {"stdout-base64": base64.b64encode(b"\xff\0").decode()}),
    ],
)
def test_json_carries_status_and_both_outputs(
    output: bytes,
    expected: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(path: Path, argv: list[str], *, stdout: int, stderr: int, **_: object) -> int:
        os.write(stdout, output)
        os.write(stderr, b"oops")
        return 3

    monkeypatch.setattr(exec_.exec_client, "run", run)
    monkeypatch.setattr(runtime, "find", lambda name: runtime.MachineDir(tmp_path))

    status = main.run(["exec", "vm1", "--json", "--", "true"])

    assert status == 3
    assert json.loads(capsys.readouterr().out) == {
        "schema": 1,
        "status": 3,
        "stderr": "oops",
        **expected,
    }
