"""Records what a real QEMU answers: run it to write qemu-7.2.json anew. No test runs it.

It boots a fetched 6.12 kernel under QEMU's emulator (a minute, 1 GiB of memory) with the devices
that we have too, so that drivers are up, and asks everything that the tests compare with.
"""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from minivmm.control import qmp  # noqa: F401 - fills the table
from minivmm.control.commands import COMMANDS
from minivmm.control.events import EVENTS
from minivmm.guest.build import build_initramfs
from minivmm.guest.kernels import find

RECORDED = Path(__file__).with_name("qemu-7.2.json")
PLUGGED = 64 << 20

QUESTIONS = (
    *("query-status", "query-name", "query-version", "query-cpus-fast", "query-kvm"),
    *("query-target", "query-current-machine", "query-pci", "query-balloon", "query-block"),
    *("query-memory-devices", "query-memory-size-summary", "query-memdev", "x-query-virtio"),
)
LINES = (
    *("info status", "info name", "info cpus", "info numa", "info pci", "info balloon"),
    *("info memory-devices", "info memory_size_summary", "info memdev", "info kvm", "info block"),
    *("info virtio", "qom-get vmem0 size", "qom-get vmem0 memdev", "qom-get vmem0 nope"),
    *("qom-set vmem0 requested-size 3", "qom-set vmem0 requested-size", "qom-set a b c"),
    *("qom-set vmem0 size 3", "qom-list /machine/peripheral", "bogus", "info bogus", "stop 3"),
    *("info cpus 3", "quit now", "help bogus", "balloon abc", "info virtio-status /nope"),
    "info virtio-queue-status /machine/peripheral/rng0/virtio-backend",
    "info virtio-queue-status /machine/peripheral/rng0/virtio-backend x",
)
CONVERSATION = (
    b'{"execute":"query-status"}',
    b'{"execute":"qmp_capabilities","arguments":{"enable":[3]}}',
    b'{"execute":"qmp_capabilities","arguments":{"foo":3}}',
    b'{"execute":"qmp_capabilities"}',
    b'{"execute":"qmp_capabilities"}',
    b'{"execute":"query-status","id":"a"}',
    b'{"execute":"query-name","id":{"b":[1,null]}}',
    b'{"execute":"bogus","id":7}',
    b'{"execute":"query-status","arguments":{"x":1}}',
    b'{"execute":"query-status","arguments":null}',
    b'{"execute":"query-status","bogus":1}',
    b'{"bogus":"query-status"}',
    b"{}",
    b"[]",
    b"{bad}",
    b'{"execute":"qom-get"}',
    b'{"execute":"qom-get","arguments":{"path":3,"property":"size"}}',
    b'{"execute":"qom-get","arguments":{"path":"nope","property":"size"}}',
    b'{"execute":"qom-get","arguments":{"path":"vmem0","property":"nope"}}',
    b'{"execute":"qom-get","arguments":{"path":"vmem0","property":"requested-size"}}',
    b'{"execute":"qom-set","arguments":{"path":"vmem0","property":"requested-size","value":3}}',
    b'{"execute":"qom-set","arguments":{"path":"vmem0","property":"requested-size","value":"2M"}}',
    b'{"execute":"qom-set","arguments":{"path":"vmem0","property":"requested-size",'
    b'"value":2147483648}}',
    b'{"execute":"qom-set","arguments":{"path":"vmem0","property":"block-size","value":1}}',
    b'{"execute":"qom-set","arguments":{"path":"vmem0","property":"requested-size",'
    b'"value":67108864}}',
    b'{"execute":"balloon","arguments":{"value":1.5}}',
    b'{"execute":"balloon","arguments":{"value":true}}',
    b'{"execute":"x-query-virtio-status","arguments":{"path":"/nope"}}',
    b'{"execute":"x-query-virtio-queue-status","arguments":{'
    b'"path":"/machine/peripheral/vmem0/virtio-backend","queue":99}}',
    b'{"execute":"x-query-virtio-queue-status","arguments":{'
    b'"path":"/machine/peripheral/vmem0/virtio-backend","queue":70000}}',
    b'{"execute":"x-query-virtio-queue-status","arguments":{'
    b'"path":"/machine/peripheral/vmem0/virtio-backend"}}',
    b'{"execute":"device-list-properties","arguments":{"typename":"bogus"}}',
)


class Client:
    """A socket, its answers and its events."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.file = self.socket.makefile("rb")
        self.events: list[Any] = []
        self.file.readline()

    def send(self, data: bytes) -> Any:
        self.socket.sendall(data)
        while "event" in (message := json.loads(self.file.readline())):
            self.events.append(message)
        return message

    def ask(self, command: str, **arguments: object) -> Any:
        names = {key.replace("_", "-"): value for key, value in arguments.items()}
        return self.send(json.dumps({"execute": command, "arguments": names}).encode())["return"]


def start(directory: Path) -> tuple[subprocess.Popen[bytes], Client]:
    kernel = find("6.12")
    drivers = ["virtio_balloon", "virtio_rng", "virtio_blk"]
    (directory / "initrd").write_bytes(build_initramfs(kernel.release, kernel.modules, drivers))
    with (directory / "disk.img").open("wb") as file:
        file.truncate(16 << 20)
    options = f"""
        -nodefaults -display none -name vm1 -accel tcg -cpu max -machine q35 -smp 2 -S
        -m 512M,slots=1,maxmem=4G -qmp unix:q.sock,server=on,wait=off
        -object memory-backend-ram,id=m0,size=256M -object memory-backend-ram,id=m1,size=256M
        -numa node,nodeid=0,cpus=0,memdev=m0 -numa node,nodeid=1,cpus=1,memdev=m1
        -object memory-backend-ram,id=vmem0-memory,size=1G,reserve=off
        -device virtio-mem-pci,id=vmem0,memdev=vmem0-memory,requested-size=64M,block-size=2M,node=1
        -device virtio-balloon-pci,id=balloon0,disable-legacy=on
        -device virtio-rng-pci,id=rng0,packed=on,disable-legacy=on
        -drive if=none,id=disk0,file=disk.img,format=raw
        -device virtio-blk-pci,id=disk0,drive=disk0,disable-legacy=on
        -kernel {kernel.image} -initrd initrd
    """
    words = [*options.split(), "-append", "memhp_default_state=online_movable"]
    process = subprocess.Popen(["qemu-system-x86_64", *words], cwd=directory)
    while not (directory / "q.sock").exists():
        time.sleep(0.1)
    time.sleep(0.2)
    return process, Client(directory / "q.sock")


def expand(by_name: dict[str, Any], name: str, depth: int = 0) -> Any:
    """The type `name` spelled out: an object's members, with '?' behind the optional ones."""
    entity = by_name[name]
    match entity["meta-type"]:
        case "builtin":
            return entity["json-type"]
        case "enum":
            return "string"
        case "array":
            return [expand(by_name, entity["element-type"], depth + 1)]
        case "alternate":
            return "value"
    if depth > 5:
        return "value"
    return {
        one["name"] + ("?" if "default" in one else ""): expand(by_name, one["type"], depth + 1)
        for one in entity["members"]
    }


def schema(client: Client) -> dict[str, Any]:
    """Of what QEMU has and we have too: arguments and answers of commands, data of events."""
    by_name = {entity["name"]: entity for entity in client.ask("query-qmp-schema")}
    found: dict[str, Any] = {}
    for name in (*COMMANDS, *EVENTS):
        if entity := by_name.get(name):
            found[name] = {"arg": expand(by_name, entity["arg-type"])}
            if "ret-type" in entity:
                found[name]["ret"] = expand(by_name, entity["ret-type"])
    return found


def record(client: Client) -> dict[str, Any]:
    talk = [[said.decode(), client.send(said)] for said in CONVERSATION]
    client.ask("cont")
    while client.ask("qom-get", path="vmem0", property="size") != PLUGGED:
        time.sleep(0.5)
    time.sleep(4)  # the other drivers
    virtio = {}
    for one in client.ask("x-query-virtio"):
        path = one["path"]
        status = client.ask("x-query-virtio-status", path=path)
        queues = [
            client.ask("x-query-virtio-queue-status", path=path, queue=queue)
            for queue in range(status["num-vqs"])
        ]
        virtio[path] = {"status": status, "queues": queues}
    found = {
        "answers": {name: client.ask(name) for name in QUESTIONS},
        "virtio": virtio,
        "monitor": {line: client.ask("human-monitor-command", command_line=line) for line in LINES},
        "conversation": talk,
        "schema": schema(client),
    }
    client.ask("stop")
    client.ask("cont")
    client.ask("balloon", value=256 << 20)
    time.sleep(3)
    client.ask("system_reset")
    client.ask("system_powerdown")
    client.ask("quit")
    found["events"] = [*client.events, *map(json.loads, client.file)]
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        process, client = start(Path(name))
        found = record(client)
        process.wait()
    RECORDED.write_text(json.dumps(found, indent=None, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
