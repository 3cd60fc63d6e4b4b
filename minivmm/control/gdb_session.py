"""What GDB's packets ask for, answered with a machine's Debugger. Threads are vCPUs, from 1 on.

GDB manual, "GDB Remote Serial Protocol", Packets. Transport and life of a connection are in
gdb_server.py.
"""

from __future__ import annotations

from collections.abc import Callable

from minivmm.control.face import Context
from minivmm.control.gdb_packets import PACKET_MAX, escape, unescape
from minivmm.control.gdb_registers import (
    REGISTERS,
    from_hex,
    register_to_hex,
    target_description,
    to_hex,
)
from minivmm.control.hmp import human_monitor_command
from minivmm.debugger import Debugger, Stop
from minivmm.errors import GuestAddressError, HostError, MinivmmError
from minivmm.kvm.debug import Watch

OK = b"OK"
UNKNOWN = b""
"""The answer to every packet that a stub does not know."""

_BAD_ADDRESS = b"E0e"
_BAD_REQUEST = b"E16"
_FAILED = b"E01"

_REPORTS = {"trap": "swbreak:", "execute": "hwbreak:", "write": "watch:%x", "access": "awatch:%x"}
_SIGINT, _SIGTRAP = 2, 5

_SUPPORTED = (
    f"PacketSize={PACKET_MAX:x};QStartNoAckMode+;qXfer:features:read+;vContSupported+;"
    "swbreak+;hwbreak+"
)
_READ_MAX = (PACKET_MAX - 1) // 2
"""Bytes of memory that fit into an answer."""


class GdbSession:
    """One GDB. `handle` wants the lock held, and answers None when there is no answer (yet)."""

    def __init__(self, context: Context, debugger: Debugger) -> None:
        self._context = context
        self._debugger = debugger
        self._cpu = 0  # that registers and memory are asked of
        self._stop = Stop(0, "attach")
        self.acknowledges = True
        self.detached = False

    def stopped(self, stop: Stop) -> bytes:
        """The packet that tells GDB of `stop`; the vCPU is the chosen one from now on."""
        self._stop, self._cpu = stop, stop.cpu
        signal = _SIGINT if stop.cause == "interrupt" else _SIGTRAP
        report = _REPORTS.get(stop.cause, "")
        if "%" in report:
            report %= stop.address
        text = f"T{signal:02x}thread:{stop.cpu + 1:x};" + (f"{report};" if report else "")
        return text.encode()

    def handle(self, packet: bytes) -> bytes | None:
        """The answer to a packet. Whatever GDB sends, it is answered: nothing is raised."""
        if self.detached or not self._debugger.stopped:
            return None
        name = chr(packet[0]) if packet else ""
        command = _COMMANDS.get(name)
        if command is None:
            return UNKNOWN
        try:
            return command(self, packet[1:])
        except GuestAddressError:
            return _BAD_ADDRESS
        except (ValueError, IndexError):
            return _BAD_REQUEST
        except MinivmmError:
            return _FAILED

    # -- the target --------------------------------------------------------------------------------

    def _why(self, rest: bytes) -> bytes:
        return self.stopped(self._stop)

    def _query(self, rest: bytes) -> bytes:
        text = rest.decode("latin-1")
        if text.startswith("Supported"):
            return _SUPPORTED.encode()
        if text.startswith("Xfer:features:read:target.xml:"):
            offset, length = _numbers(text.rpartition(":")[2])
            data = target_description().encode()
            piece = data[offset : offset + length]
            return (b"l" if offset + length >= len(data) else b"m") + escape(piece)
        if text == "fThreadInfo":
            count = len(self._debugger.vcpus)
            return b"m" + ",".join(f"{number + 1:x}" for number in range(count)).encode()
        if text.startswith("ThreadExtraInfo,"):
            cpu = self._thread(text.partition(",")[2])
            return f"cpu{cpu}".encode().hex().encode()
        if text.startswith("Rcmd,"):
            line = bytes.fromhex(text.partition(",")[2]).decode(errors="replace")
            answer = human_monitor_command(self._context, line)
            return str(answer).replace("\r", "").encode().hex().encode() or OK
        fixed = {
            "Attached": b"1",  # so that GDB detaches when it leaves, in place of killing us
            "C": f"QC{self._cpu + 1:x}".encode(),
            "sThreadInfo": b"l",
            "Symbol::": OK,
        }
        return fixed.get(text, UNKNOWN)

    def _set(self, rest: bytes) -> bytes:
        if rest != b"StartNoAckMode":
            return UNKNOWN
        self.acknowledges = False
        return OK

    def _choose(self, rest: bytes) -> bytes:
        """`Hg` for what comes; `Hc` is of old, and `vCont` says more."""
        if rest[:1] == b"g":
            self._cpu = self._thread(rest[1:].decode())
        return OK

    def _alive(self, rest: bytes) -> bytes:
        self._thread(rest.decode())
        return OK

    # -- registers and memory ----------------------------------------------------------------------

    def _read_registers(self, rest: bytes) -> bytes:
        return to_hex(self._debugger.vcpus[self._cpu].debug.registers()).encode()

    def _write_registers(self, rest: bytes) -> bytes:
        self._change(from_hex(rest.decode()))
        return OK

    def _read_register(self, rest: bytes) -> bytes:
        register = REGISTERS[int(rest, 16)]
        values = self._debugger.vcpus[self._cpu].debug.registers()
        return register_to_hex(register, values[register.name]).encode()

    def _write_register(self, rest: bytes) -> bytes:
        number, _, value = rest.partition(b"=")
        name = REGISTERS[int(number, 16)].name
        self._change({name: int.from_bytes(bytes.fromhex(value.decode()), "little")})
        return OK

    def _change(self, values: dict[str, int]) -> None:
        """Not those that have their values: KVM would have to take them again."""
        debug = self._debugger.vcpus[self._cpu].debug
        now = debug.registers()
        debug.set_registers({name: new for name, new in values.items() if now[name] != new})

    def _read_memory(self, rest: bytes) -> bytes:
        address, length = _numbers(rest.decode())
        return self._debugger.code.read(self._cpu, address, min(length, _READ_MAX)).hex().encode()

    def _write_memory(self, rest: bytes) -> bytes:
        where, _, data = rest.partition(b":")
        return self._store(where, bytes.fromhex(data.decode()))

    def _write_binary(self, rest: bytes) -> bytes:
        where, _, data = rest.partition(b":")
        return self._store(where, unescape(data))

    def _store(self, where: bytes, data: bytes) -> bytes:
        address, length = _numbers(where.decode())
        if length != len(data):
            return _BAD_REQUEST
        self._debugger.code.write(self._cpu, address, data)
        return OK

    # -- breakpoints -------------------------------------------------------------------------------

    def _insert(self, rest: bytes) -> bytes:
        kind, address, size = _breakpoint(rest)
        if kind == 0:
            try:
                self._debugger.code.set_trap(self._cpu, address)
            except HostError as error:
                return f"E.{error}".encode()
            return OK
        watch = self._watch(kind, address, size)
        if watch is None:
            return UNKNOWN
        self._debugger.add_watch(watch)
        return OK

    def _remove(self, rest: bytes) -> bytes:
        kind, address, size = _breakpoint(rest)
        if kind == 0:
            self._debugger.code.clear_trap(address)
            return OK
        watch = self._watch(kind, address, size)
        if watch is None:
            return UNKNOWN
        self._debugger.remove_watch(watch)
        return OK

    def _watch(self, kind: int, address: int, size: int) -> Watch | None:
        """None for what this host, or any x86, cannot watch: GDB then does without."""
        word = {1: "execute", 2: "write", 4: "access"}.get(kind)
        if word is None or not self._debugger.features.hardware:
            return None
        if word == "execute":
            size = 1
        if size not in (1, 2, 4, 8) or address % size:
            raise HostError(f"{size} bytes at {address:#x} cannot be watched")
        return Watch(address, size, word)

    # -- running -----------------------------------------------------------------------------------

    def _continue(self, rest: bytes) -> bytes | None:
        self._jump(rest)
        self._debugger.go()
        return None

    def _step(self, rest: bytes) -> bytes | None:
        self._jump(rest)
        self._debugger.go(steps=(self._cpu,))
        return None

    def _continue_signal(self, rest: bytes) -> bytes | None:
        """A signal means nothing to a machine."""
        return self._continue(rest.partition(b";")[2])

    def _step_signal(self, rest: bytes) -> bytes | None:
        return self._step(rest.partition(b";")[2])

    def _jump(self, address: bytes) -> None:
        if address:
            self._debugger.vcpus[self._cpu].debug.set_registers({"rip": int(address, 16)})

    def _verbose(self, rest: bytes) -> bytes | None:
        text = rest.decode("latin-1")
        if text == "Cont?":
            return b"vCont;c;C;s;S"
        if text.startswith("Cont;"):
            self._run(text.split(";")[1:])
            return None
        if text.startswith("Kill;"):
            self._kill(b"")
            return OK
        return UNKNOWN

    def _run(self, actions: list[str]) -> None:
        """Each vCPU does the first of `actions` that names it; without one it stays parked."""
        steps: set[int] = set()
        runs: set[int] = set()
        every = range(len(self._debugger.vcpus))
        for action in actions:
            what, _, thread = action.partition(":")
            if what[:1] not in ("c", "C", "s", "S"):
                raise ValueError(action)
            chosen = every if thread in ("", "-1") else (self._thread(thread),)
            fresh = set(chosen) - runs
            runs |= fresh
            if what[0] in "sS":
                steps |= fresh
        if not runs:
            raise ValueError("nobody runs")
        self._debugger.go(steps=steps, only=None if runs == set(every) else frozenset(runs))

    def _detach(self, rest: bytes) -> bytes:
        self.detached = True
        self._debugger.detach(run=True)
        return OK

    def _kill(self, rest: bytes) -> bytes | None:
        self._context.machine.request_quit()
        return None

    def _thread(self, text: str) -> int:
        """vCPU of a thread id; 0 and -1 stand for any. Raises ValueError."""
        number = int(text, 16)
        if number <= 0:
            return self._cpu
        if number > len(self._debugger.vcpus):
            raise ValueError(f"no thread {number}")
        return number - 1


_COMMANDS: dict[str, Callable[[GdbSession, bytes], bytes | None]] = {
    "?": GdbSession._why,
    "q": GdbSession._query,
    "Q": GdbSession._set,
    "H": GdbSession._choose,
    "T": GdbSession._alive,
    "g": GdbSession._read_registers,
    "G": GdbSession._write_registers,
    "p": GdbSession._read_register,
    "P": GdbSession._write_register,
    "m": GdbSession._read_memory,
    "M": GdbSession._write_memory,
    "X": GdbSession._write_binary,
    "Z": GdbSession._insert,
    "z": GdbSession._remove,
    "c": GdbSession._continue,
    "C": GdbSession._continue_signal,
    "s": GdbSession._step,
    "S": GdbSession._step_signal,
    "v": GdbSession._verbose,
    "D": GdbSession._detach,
    "k": GdbSession._kill,
}


def _numbers(text: str) -> tuple[int, int]:
    """`ADDRESS,LENGTH` in hexadecimal. Raises ValueError."""
    first, second = text.split(",")
    address, length = int(first, 16), int(second, 16)
    if not 0 <= address < 1 << 64 or length < 0:
        raise ValueError(text)
    return address, length


def _breakpoint(rest: bytes) -> tuple[int, int, int]:
    """`TYPE,ADDRESS,KIND`; conditions and commands behind it are GDB's own matter."""
    kind, _, where = rest.decode().partition(";")[0].partition(",")
    return (int(kind), *_numbers(where))
