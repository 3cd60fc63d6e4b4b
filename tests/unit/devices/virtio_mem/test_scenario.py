"""Scenario files: the same rules in JSON and TOML; what is wrong is told with file and line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from minivmm.devices.virtio_mem.mischief import mischief_of, read_scenario
from minivmm.errors import UsageError
from minivmm.spec.virtio_mem import ResponseType
from minivmm.testing.mem_bench import MemBench
from minivmm.units import GIB, MIB

JSON = """{"schema": 1, "rules": [
  {"device": "vmem0", "on": "request", "type": "PLUG", "nth": 2, "times": 1,
   "answer": "BUSY", "delay": 0.5},
  {"type": "UNPLUG", "gpa": ["4G", "0x108000000"], "probability": 0.5, "seed": 3,
   "refuse-host": true},
  {"on": "config", "field": "block-size", "show": "3M"},
  {"on": "config-interrupt", "drop": true}
]}
"""

TOML = """# three kinds
[[rules]]
device = "vmem0"
on = "request"
type = "PLUG"
nth = 2
times = 1
answer = "BUSY"
delay = 0.5

[[rules]]
type = "UNPLUG"
gpa = ["4G", 0x108000000]
probability = 0.5
seed = 3
refuse-host = true

[[rules]]
on = "config"
field = "block-size"
show = "3M"

[[rules]]
on = "config-interrupt"
drop = true
"""


@pytest.fixture
def bench() -> Iterator[MemBench]:
    with MemBench(size=GIB, requested_size=GIB) as made:
        yield made


def written(folder: Path, text: str, name: str = "rules.json") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_json_and_toml_say_the_same(tmp_path: Path) -> None:
    shown = []
    for name, text in (("rules.json", JSON), ("rules.toml", TOML)):
        with MemBench(size=GIB, requested_size=GIB) as bench:
            scenario = read_scenario(written(tmp_path, text, name))
            scenario.install({"vmem0": bench.device})
            shown.append([str(rule) for rule in mischief_of(bench.device).rules])

    assert shown[0] == shown[1] == [
        "PLUG, from number 2, once: answer BUSY, delay 0.5 s",
        "UNPLUG in 0x100000000-0x107ffffff, with probability 0.5, seed 3: the host refuses",
        "read of block-size: show 0x300000",
        "config interrupt: drop",
    ]  # fmt: skip


def test_rules_that_never_acted_are_named_with_their_line(tmp_path: Path, bench: MemBench) -> None:
    text = """{"rules": [
      {"type": "PLUG", "answer": "BUSY", "times": 1},
      {"type": "STATE", "answer": "NACK"},
      {"type": "PLUG", "nth": 9, "answer": "NACK"}
    ]}"""
    path = written(tmp_path, text)
    scenario = read_scenario(path)
    scenario.install({"vmem0": bench.device})

    assert bench.driver.plug(0) is ResponseType.BUSY

    assert scenario.idle() == [
        f"{path}:3: the rule never acted: STATE: answer NACK: nothing of that came",
        f"{path}:4: the rule never acted: PLUG, from number 9: answer NACK: only 1 came",
    ]


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ('{"rules": [\n {"type": "PULG", "answer": "BUSY"}]}', 2, "'PULG'"),
        ('{"rules": [{},\n {"type": "PLUG",\n "answr": "BUSY"}]}', 1, "does nothing"),
        ('{"rules": [\n {"type": "PLUG",\n "answr": "BUSY"}]}', 3, "'answr'"),
        ('{"rules": [\n {"answer":\n "LAZY"}]}', 2, "answer: "),
        ('{"rules": [\n {"answer": "BUSY",\n\n "nth": "one"}]}', 4, "nth: 'one' is no number"),
        ('{"rules": [\n\n {"answer": "BUSY", "nth": 0}]}', 3, "nth 0"),
        ('{"rules": [\n {"silence": false}]}', 2, "leave the key out"),
        ('{"rules": [\n {"device": "vmem1", "silence": true}]}', 2, "'vmem1'"),
        ('{"rules": [\n {"on": "confg", "drop": true}]}', 2, "'confg'"),
        ('{"rules": [\n {"on": "config", "show": 5}]}', 2, "needs field"),
        ('{"rules": [\n {"on": "config",\n "field": "size", "show": 5}]}', 2, "'size'"),
        ('{"rules": [\n {"on": "config", "field": "node-id", "show": 65536}]}', 2, "16 bits"),
        ('{"rules": [\n {"gpa": ["4G"], "silence": true}]}', 2, "gpa: "),
        ('{"rules": [\n {"respond": "xyz"}]}', 2, "respond: "),
        ('{"rules": {}}', 1, "a scenario has"),
        ("[1]", 1, "a scenario has"),
        ('{"rules": [],\n "rule": 5}', 2, "'rule'"),
        ('{"rules": [\n {"type": "PLUG",,}]}', 2, "this is no JSON"),
        ("", 1, "this is no JSON"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(
    tmp_path: Path, bench: MemBench, text: str, line: int, why: str
) -> None:
    path = written(tmp_path, text)

    with pytest.raises(UsageError) as caught:
        read_scenario(path).install({"vmem0": bench.device})

    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ('[[rules]]\ntype = "PLUG"\nanswr = "BUSY"\n', 3, "'answr'"),
        ('[[rules]]\nsilence = true\n\n[[rules]]\n# x\nanswer = "LAZY"\n', 6, "answer: "),
        ('[[rules]]\nsilence = true\n[[rules]]\nnth = 1\n', 3, "does nothing"),
        ('[[rules]]\nsilence = \n', 2, "this is no TOML"),
        ('[[rule]]\nsilence = true\n', 1, "a scenario has"),
    ],
)  # fmt: skip
def test_toml_is_told_with_its_line_as_well(
    tmp_path: Path, bench: MemBench, text: str, line: int, why: str
) -> None:
    path = written(tmp_path, text, "rules.toml")

    with pytest.raises(UsageError) as caught:
        read_scenario(path).install({"vmem0": bench.device})

    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert why in str(caught.value)


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "rules.json"
    binary.write_bytes(b"\xff\xfe\x00")

    for path in (tmp_path / "none.json", tmp_path, binary):
        with pytest.raises(UsageError):
            read_scenario(path)


def test_sizes_and_targets_are_as_everywhere(tmp_path: Path, bench: MemBench) -> None:
    text = '{"rules": [{"type": "PLUG", "nth": 2, "resize": "2M"}]}'
    read_scenario(written(tmp_path, text)).install({"vmem0": bench.device})

    assert bench.driver.plug(0) is ResponseType.ACK
    assert bench.driver.plug(1) is ResponseType.NACK
    assert bench.device.requested_size == 2 * MIB
