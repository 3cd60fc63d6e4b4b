"""What the guest finds on its board: RAM, buses, PCI, devices. No CPUs, no KVM, no lifecycle.

Wiring happens here and nowhere else; which KVM objects stand behind `interrupts` and `doorbells`
is the machine's business, so tests build boards without /dev/kvm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from minivmm.boot.acpi import MemoryAffinity, Platform, write_tables
from minivmm.boot.image import load_kernel
from minivmm.boot.reset_vector import write_reset_vector
from minivmm.bus import Bus, Doorbells
from minivmm.devices.power import KeyboardPort, PowerPorts
from minivmm.devices.serial import Serial
from minivmm.devices.spec import DeviceSpec
from minivmm.devices.vfio_pci.spec import VfioPciSpec
from minivmm.devices.virtio_balloon.spec import VirtioBalloonSpec
from minivmm.devices.virtio_blk.spec import VirtioBlkSpec
from minivmm.devices.virtio_console.device import CONSOLE_PORT, VirtioConsole
from minivmm.devices.virtio_console.terminal import Terminal
from minivmm.devices.virtio_mem.device import VirtioMem
from minivmm.devices.virtio_mem.spec import VirtioMemSpec
from minivmm.devices.virtio_mem.view import Surroundings
from minivmm.devices.virtio_rng.spec import VirtioRngSpec
from minivmm.errors import HostError, UsageError
from minivmm.guest_image import GuestImage
from minivmm.irq import InterruptController
from minivmm.machine_spec import MachineSpec
from minivmm.memory.guest import GuestMemory
from minivmm.memory.layout import AddressMap, RegionRequest, plan
from minivmm.memory.region import Region
from minivmm.passthrough import Passthrough
from minivmm.pci.host import PciHost
from minivmm.spec import platform
from minivmm.spec.x86 import CpuState
from minivmm.trace import Trace
from minivmm.virtio.device import VirtioDevice
from minivmm.virtio.pci import VirtioPciFunction

if TYPE_CHECKING:
    from minivmm.devices.vfio_pci.function import VfioPciFunction
    from minivmm.devices.virtio_balloon.device import VirtioBalloon

Defer = Callable[[Callable[[], None]], None]


def plan_board(spec: MachineSpec, phys_bits: int) -> AddressMap:
    """Where everything of `spec` lies on a host with `phys_bits` of them. Raises UsageError."""
    requests = [
        RegionRequest(id=d.id, size=d.size, alignment=d.block_size, address=d.memaddr)
        for d in spec.memory_devices
    ]
    guest_bits = spec.phys_bits or phys_bits
    if guest_bits > phys_bits:
        raise UsageError(
            f"phys-bits {guest_bits} is more than this host's {phys_bits}: use {phys_bits} or less"
        )
    return plan(spec.memory, requests, guest_bits, reach=phys_bits)


class Board:
    """RAM, buses and devices of one machine. Use with the machine's lock held."""

    def __init__(
        self,
        spec: MachineSpec,
        address_map: AddressMap,
        *,
        interrupts: InterruptController,
        doorbells: Doorbells,
        defer: Defer,
        trace: Trace,
        console: Callable[[bytes], None],
        passthrough: Passthrough | None = None,
    ) -> None:
        self.address_map = address_map
        self._cpus = spec.cpus
        self._online = spec.online
        self.numa = spec.topology()
        self._specs = spec.memory_devices
        self.memory = GuestMemory()
        self.mmio = Bus("mmio")
        self.pio = Bus("pio")
        self.serial = Serial(interrupts.line(platform.SERIAL_GSI), console)
        self.pio.add(platform.SERIAL_PORT, 8, self.serial, name="serial")
        self.power = PowerPorts(interrupts.line(platform.GED_GSI))
        self.pio.add(platform.POWER_PORT, 4, self.power, name="power")
        self.pio.add(platform.KEYBOARD_PORT, 1, KeyboardPort(), name="keyboard")

        self.pci = PciHost(self.mmio, self.pio, address_map, interrupts)
        self.functions: list[VirtioPciFunction] = []
        self.passed_on: list[VfioPciFunction] = []
        self.console = VirtioConsole(spec.console_device)
        self.terminal = Terminal(self.console.ports[CONSOLE_PORT])
        self.memory_devices: dict[str, VirtioMem] = {}
        self.balloon: VirtioBalloon | None = None

        def plug_in(device: VirtioDevice) -> None:
            function = VirtioPciFunction(
                device,
                interrupts=interrupts,
                doorbells=doorbells,
                memory=self.memory,
                trace=trace,
                defer=defer,
            )
            self.functions.append(function)
            self.pci.add(function)

        try:
            for name, window in zip(("low RAM", "high RAM"), address_map.ram, strict=False):
                self.memory.add(window.base, Region(window.size), name=name)
            plug_in(self.console)
            for device in spec.devices:
                if isinstance(device, VfioPciSpec):
                    assert passthrough is not None
                    self._pass_on(passthrough.build(device, trace))
                elif not device.built_in:
                    plug_in(self._build(device))
            self._assign_bars()
        except BaseException:
            self.close()
            raise

    @property
    def boot_memory(self) -> int:
        """Bytes of RAM that the guest boots with."""
        return sum(window.size for window in self.address_map.ram)

    def load(self, image: GuestImage) -> CpuState:
        """Write kernel, initrd, ACPI tables; returns the boot CPU's state. Raises ImageError."""
        hotplug = tuple(
            MemoryAffinity(window.base, window.size, self._node(identifier))
            for identifier, window in self.address_map.regions.items()
        )
        write_reset_vector(self.memory)
        tables = Platform(self.address_map, self._cpus, hotplug, self.numa)
        return load_kernel(
            self.memory,
            self.address_map,
            kernel=image.kernel,
            name=image.name,
            cmdline=image.cmdline,
            initrd=image.initrd,
            rsdp=write_tables(self.memory, tables),
        )

    def surroundings(self, identifier: str, *, running: bool) -> Surroundings:
        """What a diagnosis of memory device `identifier` needs beside the device's own state."""
        function = next(one for one in self.functions if one.device.identifier == identifier)
        return Surroundings(
            status=function.transport.status,
            trouble=function.transport.trouble,
            phys_bits=self.address_map.phys_bits,
            boot_end=self.address_map.ram[-1].end,
            online=self._online,
            pci_address=function.address,
            running=running,
            queues=function.transport.live_queues(),
        )

    def system_reset(self) -> None:
        """Everything as at power-on: devices reset, all blocks unplugged, RAM empty."""
        for passed_on in self.passed_on:
            passed_on.quiet()  # before the memory goes that it may write to
        for function in self.functions:
            function.system_reset()
        self.pci.reset()
        self.pci.assign_bars()
        self.serial.reset()
        self.power.reset()
        self.memory.clear_ram()

    def inspect(self) -> dict[str, object]:
        """The live tree of the board, as plain data."""
        return {
            "memory": self.memory.inspect(),
            "mmio": self.mmio.inspect(),
            "pio": self.pio.inspect(),
            "pci": self.pci.inspect(),
            "serial": self.serial.inspect(),
            "devices": {f.device.identifier: f.inspect() for f in self.functions},
        }

    def close(self) -> None:
        """Give devices, files and the guest's memory back to the host."""
        for passed_on in self.passed_on:
            passed_on.close()
        for function in self.functions:
            function.device.close()
        self.memory.close()

    def _pass_on(self, function: VfioPciFunction) -> None:
        """Plug in a device of the host."""
        self.passed_on.append(function)
        self.pci.add(function)
        function.start()

    def _assign_bars(self) -> None:
        """Raises HostError if devices of the host want more room than there is."""
        try:
            self.pci.assign_bars()
        except ValueError as error:
            raise HostError(
                f"{error}: pass on fewer devices of that size, or set theirs in the host's firmware"
            ) from error

    def _build(self, spec: DeviceSpec) -> VirtioDevice:
        """The device that `spec` describes. Raises HostError for what this host does not have.

        What few machines have is loaded when one has it.
        """
        match spec:
            case VirtioMemSpec():
                return self._build_memory_device(spec)
            case VirtioBalloonSpec():
                from minivmm.devices.virtio_balloon.device import VirtioBalloon

                self.balloon = VirtioBalloon(spec)
                return self.balloon
            case VirtioBlkSpec():
                from minivmm.devices.virtio_blk.device import VirtioBlk

                return VirtioBlk(spec)
            case VirtioRngSpec():
                from minivmm.devices.virtio_rng.device import VirtioRng

                return VirtioRng(spec)
        raise ValueError(f"nothing is built from {type(spec).__name__}")

    def _build_memory_device(self, spec: VirtioMemSpec) -> VirtioMem:
        """Raises HostError for host memory that this host does not have."""
        window = self.address_map.regions[spec.id]
        try:
            spec.check_host()
            device = VirtioMem(spec, window, Region(spec.size, spec.host_memory))
        except HostError as error:
            raise HostError(f"{spec.id}: {error}") from error
        self.memory_devices[spec.id] = device
        self.mmio.add(window.base, window.size, device.intruders, name=f"{spec.id} (unplugged)")
        return device

    def _node(self, identifier: str) -> int:
        return next(spec.node for spec in self._specs if spec.id == identifier)
