"""What Linux makes of a device that misbehaves: cases, and guests that go through all of them.

Each case has a device of its own, so that none spoils another and one boot does for most.
`scripts/misbehaviour` writes what it finds to docs/misbehaviour.json, and the table from that.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import Guest

MIB = 1 << 20
GROWN = 256 * MIB
SIZE = 512 * MIB
QUIET = 6.0
"""Seconds without a change after which nothing more is expected; far less than Linux' 50 s."""
PATIENCE = 60.0

LOCKUP = 30.0
"""Seconds until Linux complains of a CPU that is stuck, with a reserve."""
OPTIONS = ("loglevel=6", "watchdog_thresh=4", "init_on_alloc=0")
"""Linux complains of a stuck CPU after 8 s instead of 20, and does not fill with zeros what it is
about to give away, for which it needs longer than QUIET where CPUs are emulated."""
FATAL = re.compile(r"divide error|BUG: soft lockup|BUG: unable to handle|Kernel panic")

Rule = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """`rules` are in force from the boot on; then the device is to grow, or to grow and shrink."""

    name: str
    rules: tuple[Rule, ...]
    why: str
    """Which code of Linux' driver decides what happens, in a line."""
    shrinks: bool = False
    fatal: bool = False
    """It may take the kernel with it: a guest of its own, and nothing is tried as a cure."""
    races: bool = False
    """The end depends on who is faster, guest or device; a run shows one of several."""
    target: int = GROWN
    """Bytes plugged when it went well."""

    @property
    def lasts(self) -> bool:
        """Do its rules go on for ever, so that nothing can help?"""
        return all(rule["on"] == "config" and "times" not in rule for rule in self.rules)


def plug(**what: Any) -> tuple[Rule, ...]:
    return ({"on": "request", "type": "PLUG", **what},)


def unplug(**what: Any) -> tuple[Rule, ...]:
    return ({"on": "request", "type": "UNPLUG", **what},)


def config(name: str, **what: Any) -> Rule:
    return {"on": "config", "field": name, **what}


TIMER = "ETXTBSY: a timer of 50 s, doubled up to 300 s; a config interrupt ends it"
NOMEM = "ENOMEM: the same timer as after BUSY"
BROKEN = "EINVAL: `unknown error, marking device broken`; nothing is asked any more"

CASES = (
    Case("PLUG: BUSY once", plug(answer="BUSY", times=1), TIMER),
    Case("PLUG: BUSY twice", plug(answer="BUSY", times=2), TIMER),
    Case("PLUG: NACK 20 times", plug(answer="NACK", times=20),
         "EAGAIN: the worker begins anew at once, without a pause"),
    Case("PLUG: ERROR once", plug(answer="ERROR", times=1), BROKEN),
    Case("PLUG: answer 7 once", plug(answer=7, times=1), NOMEM),
    Case("PLUG: ACK once, not done", plug(answer="ACK", times=1),
         "the driver counts what was acknowledged and compares it with plugged_size (WARN_ON)"),
    Case("PLUG: no byte of the answer written, once", plug(shorten=0, times=1),
         "the length is not looked at; the buffer holds the answer before, at first zeros: ACK"),
    Case("PLUG: half of the answer's type written, once", plug(shorten=1, times=1),
         "the length is not looked at; the other half is what was there"),
    Case("PLUG: used length 2^32-1, once", plug(**{"used-length": 0xFFFFFFFF, "times": 1}),
         "the length is not looked at"),
    Case("PLUG: answer 3 s late, once", plug(delay=3, times=1),
         "the worker sleeps, without a limit"),
    Case("PLUG: never answered, once", plug(silence=True, times=1),
         "the worker sleeps for ever, and whoever unbinds the driver with it"),
    Case("PLUG: answered twice, once", plug(twice=True, times=1),
         "the second used element passes for the answer to the next request, as soon as that is"
         " made: the driver may take its buffers back before the device reads them", races=True),
    Case("PLUG: late by 0.5 s and its interrupt dropped, once",
         plug(**{"delay": 0.5, "drop-interrupt": True, "times": 1}),
         "the worker sleeps until an interrupt of the queue comes; an answer that is there when it"
         " first looks needs none"),
    Case("PLUG: interrupt three times, once", plug(**{"repeat-interrupt": 3, "times": 1}),
         "the worker is woken and finds nothing new"),
    Case("PLUG: used index ahead by 1, once", plug(**{"break-index": 1, "times": 1}),
         "what is in the used ring there, zeros at first, passes for the answer to the next"
         " request: as above", races=True),
    Case("PLUG: the host fails to populate, once", plug(**{"refuse-host": True, "times": 1}),
         "BUSY; minivmm kicks the driver as soon as there is room"),
    Case("requested-size becomes 128M at the second PLUG",
         plug(resize="128M", nth=2, times=1), "NACK, and the interrupt has the driver read again",
         target=128 * MIB),
    Case("usable-region-size becomes 128M at the second PLUG",
         plug(**{"shrink-usable": "128M", "nth": 2, "times": 1}), BROKEN),
    Case("requested-size changes between two reads of it",
         (config("requested-size", resize="128M", nth=4, times=1),),
         "the generation moves, so both halves are read again", target=128 * MIB),
    Case("block-size 2^62", (config("block-size", show=1 << 62),),
         "no block fits into the region: ENOSPC, without a word"),
    Case("addr not aligned (1M too high)", (config("addr", show=0),),
         "a warning; Linux' own memory blocks inside of the region are aligned all the same"),
    Case("usable-region-size 0", (config("usable-region-size", show=0),),
         "no block to plug: ENOSPC, without a word"),
    Case("plugged-size 64M at probe, and UNPLUG_ALL: BUSY once",
         (config("plugged-size", show="64M", times=2),
          {"on": "request", "type": "UNPLUG_ALL", "answer": "BUSY", "times": 1}), TIMER),
    Case("config interrupt dropped, once", ({"on": "config-interrupt", "drop": True, "times": 1},),
         "nobody looks at the configuration until the next one"),
    Case("UNPLUG: BUSY once", unplug(answer="BUSY", times=1), TIMER, shrinks=True),
    Case("UNPLUG: NACK once", unplug(answer="NACK", times=1), NOMEM, shrinks=True),
    Case("UNPLUG: ERROR once", unplug(answer="ERROR", times=1), BROKEN, shrinks=True),
    Case("UNPLUG: the host fails to discard, once", unplug(**{"refuse-host": True, "times": 1}),
         TIMER, shrinks=True),
    Case("block-size 0", (config("block-size", show=0),),
         "a division by it when the first request is made up", fatal=True),
    Case("block-size 3M", (config("block-size", show="3M"),),
         "not checked; where pages are handed out, a loop over parts of powers of two does not end"
         " in a block of which a part is plugged", fatal=True),
)  # fmt: skip


@dataclass
class Found:
    """What became of a case. Sizes in bytes."""

    at_first: int = -1
    kicked: int = -1
    rebound: int = -1
    answers: dict[str, dict[str, int]] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    idle: bool = False
    """Its rules never acted."""
    unbind_hangs: bool = False

    def cure(self, case: Case) -> str:
        """What brought the device to where it should be."""
        target = 0 if case.shrinks else case.target
        if self.at_first == target:
            return "none needed"
        if self.kicked == target:
            return "config interrupt"
        if case.lasts and not case.fatal:
            return "none while it lasts"
        if self.unbind_hangs:
            return "none: unbinding hangs"
        return "unbind and bind" if self.rebound == target else "none but a reboot"


class Run:
    """Cases in one guest, `kernel` being its release."""

    def __init__(self, kernel: str, folder: Path, cases: Sequence[Case]) -> None:
        self._cases = cases
        self.found = {case.name: Found() for case in cases}
        self._ids = {case.name: f"c{number}" for number, case in enumerate(cases)}
        scenario = folder / f"misbehaviour-{kernel}.json"
        rules = [
            {"device": self._ids[case.name], **self._placed(number, rule)}
            for number, case in enumerate(cases)
            for rule in case.rules
        ]
        scenario.write_text(json.dumps({"rules": rules}, indent=1))
        options = ["-k", kernel, "-m", "768M", "--scenario", str(scenario)]
        options += [word for option in OPTIONS for word in ("-a", option)]
        for number, identifier in enumerate(self._ids.values()):
            place = f"memaddr={self._address(number):#x}"
            options += ["--device", f"virtio-mem-pci,id={identifier},size={SIZE},{place}"]
        self.guest = Guest(*options)

    def go(self) -> dict[str, Found]:
        """Boot, and go through all of it."""
        with self.guest:
            if self._cases[0].fatal:
                self._fatal_stage(self._cases[0])
            else:
                self._stage(self._cases)
                self._look(self._cases, self.guest.shell("dmesg"))
        return self.found

    def _fatal_stage(self, case: Case) -> None:
        """The kernel may be lost by it: what it says comes on the console."""
        before = len(self.guest.output())
        self.guest.request(**{self._ids[case.name]: GROWN})
        self._settle()
        end = time.monotonic() + LOCKUP
        while time.monotonic() < end and not FATAL.search(self.guest.output(), before):
            time.sleep(1.0)
        self._note("at_first", [case])
        self._look([case], "")
        said = FATAL.findall(self.guest.output(), before)
        self.found[case.name].log = list(dict.fromkeys(said))

    def _stage(self, cases: Sequence[Case]) -> None:
        guest = self.guest
        guest.request(**{self._ids[case.name]: GROWN for case in cases})
        self._settle()
        shrinking = [case for case in cases if case.shrinks]
        if shrinking:
            guest.request(**{self._ids[case.name]: 0 for case in shrinking})
            self._settle()
        self._note("at_first", cases)
        for case in self._unwell(cases, "at_first"):
            guest.qmp.execute("x-minivmm-kick", id=self._ids[case.name])
        self._settle()
        self._note("kicked", cases)
        self._rebind(self._unwell(cases, "kicked"))
        self._settle()
        self._note("rebound", cases)

    def _rebind(self, cases: Sequence[Case]) -> None:
        """Unbind and bind their drivers, all at once, and see which of that does not come back."""
        names = " ".join(self._virtio(case) for case in cases)
        driver = "/sys/bus/virtio/drivers/virtio_mem"
        self.guest.shell(
            f"cd {driver}; for n in {names}; do"
            " (touch /tmp/$n; echo $n > unbind; rm /tmp/$n; echo $n > bind)"
            " >/dev/null 2>&1 </dev/null & done;"
            " sleep 16"
        )
        left = self.guest.shell("ls /tmp").split()
        for case in cases:
            self.found[case.name].unbind_hangs = self._virtio(case) in left

    def _look(self, cases: Sequence[Case], dmesg: str) -> None:
        """Answers, the kernel's own words, and rules that never acted."""
        tree = self.guest.qmp.execute("x-minivmm-inspect")["board"]["devices"]
        for case in cases:
            found = self.found[case.name]
            model = tree[self._ids[case.name]]["model"]
            found.answers = model["answers"]
            found.idle = any(not rule["fired"] for rule in model["mischief"])
            found.log = _said(dmesg, self._virtio(case))

    def _settle(self) -> None:
        """Return once nothing changed for a while."""
        seen, since = self.guest.plugged(), time.monotonic()
        end = since + PATIENCE
        while time.monotonic() < min(since + QUIET, end):
            time.sleep(0.5)
            now = self.guest.plugged()
            if now != seen:
                seen, since = now, time.monotonic()

    def _note(self, stage: str, cases: Sequence[Case]) -> None:
        plugged = self.guest.plugged()
        print(f"{stage}: {plugged}", flush=True)
        for case in cases:
            setattr(self.found[case.name], stage, plugged[self._ids[case.name]])

    def _unwell(self, cases: Sequence[Case], stage: str) -> list[Case]:
        return [
            case
            for case in cases
            if getattr(self.found[case.name], stage) != (0 if case.shrinks else case.target)
        ]

    def _virtio(self, case: Case) -> str:
        """The guest's name of its device: they are found in the order of their slots."""
        return f"virtio{1 + self._cases.index(case)}"

    @staticmethod
    def _address(number: int) -> int:
        return (8 << 30) + number * (2 << 30)

    def _placed(self, number: int, rule: Rule) -> Rule:
        """Where the device is, is only known here."""
        if rule.get("field") == "addr":
            return {**rule, "show": self._address(number) + MIB}
        return rule


def _said(dmesg: str, name: str) -> list[str]:
    """What the kernel said of a device after it had been found, without times and names."""
    usual = ("start address", "region size", "device block size", "nid:", "memory block size",
             "subblock size", "big block size", "plugged size", "requested size")  # fmt: skip
    lines = [
        re.sub(r"^\[[^]]*\] ", "", line).partition(f"{name}: ")[2]
        for line in dmesg.splitlines()
        if f" {name}: " in line
    ]
    return list(dict.fromkeys(line for line in lines if not line.startswith(usual)))


def find(kernel: str, folder: Path) -> dict[str, Found]:
    """All cases with that kernel: one guest for most, and one for each that is fatal."""
    together = [[case for case in CASES if not case.fatal]]
    found: dict[str, Found] = {}
    for cases in together + [[case] for case in CASES if case.fatal]:
        found |= Run(kernel, folder, cases).go()
    return found


def rows(kernel: str, found: dict[str, Found]) -> dict[str, Any]:
    """What of a run is kept: JSON."""
    return {
        case.name: {
            "plugged": found[case.name].at_first,
            "cure": found[case.name].cure(case),
            "answers": found[case.name].answers,
            "log": found[case.name].log,
        }
        for case in CASES
    } | {"kernel": kernel}
