"""VfioPciFunction: a device of the host on the guest's PCI bus.

Its registers are its own, its place and its interrupts are ours. I/O ports and the expansion ROM
are left out: the machine has no ports for PCI, and nothing that would run a ROM.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from minivmm.bus import Windows
from minivmm.devices.vfio_pci.bars import HostBar, Overlay
from minivmm.devices.vfio_pci.config import HostConfig
from minivmm.devices.vfio_pci.interrupts import Interrupts
from minivmm.devices.vfio_pci.msi import Msi
from minivmm.devices.vfio_pci.msix import MsixTable
from minivmm.errors import HostError
from minivmm.irq import EventInterrupts
from minivmm.pci.function import Bar, PciFunction
from minivmm.spec import pci
from minivmm.spec.pci import CapabilityId, Express
from minivmm.spec.platform import pci_gsi
from minivmm.trace import Trace
from minivmm.units import is_power_of_two
from minivmm.vfio.abi import Irq
from minivmm.vfio.device import VfioDevice

Watch = Callable[[Callable[[], None]], tuple[int, Callable[[], None]]]
"""A new eventfd that calls back, and its closer (EventLoop.watch_eventfd)."""

_MOST_LINES = 20
"""What the user is told of a device at most: guests can cause much of it."""


class VfioPciFunction(PciFunction):
    """`device` as the guest sees it. Owns the device from here on. Raises HostError.

    `warn` gets lines for the user.
    """

    def __init__(
        self,
        identifier: str,
        device: VfioDevice,
        *,
        interrupts: EventInterrupts,
        windows: Windows,
        watch: Watch,
        trace: Trace,
        warn: Callable[[str], None],
    ) -> None:
        self._device = device
        self._trace = trace
        self._warn = warn
        self._windows = windows
        self._said: set[str] = set()
        self._closers: list[Callable[[], None]] = []
        self._host_bars: dict[int, HostBar] = {}
        self.on_gone: Callable[[], None] = lambda: None
        """Called when the host took the device away, before it is given back."""
        try:
            self._config = HostConfig(device)
            super().__init__(self._config)
            self.name = identifier
            self.interrupts = Interrupts(device, interrupts, self._complain)
            self.msi: Msi | None = None
            self.msix: MsixTable | None = None
            self._claim_header()
            self._claim_capabilities()
            self._add_bars()
            self._listen(watch, Irq.REQUEST, self._on_request)
            self._listen(watch, Irq.ERROR, self._on_error)
        except OSError as error:
            raise HostError(f"{identifier}: {device.name}: {error.strerror or error}") from error

    def start(self) -> None:
        """It has its slot, so its pin can be wired."""
        if self.config.get(pci.INTERRUPT_PIN, 1):
            self.interrupts.use_pin(pci_gsi(self.slot))
        self._settle_interrupts()

    def wanted_address(self, bar: Bar) -> int | None:
        """Where the guest wants `bar`; None as well while the device sleeps and answers nothing."""
        return None if self._config.asleep or self._config.gone else super().wanted_address(bar)

    def on_bar_moved(self, bar: Bar) -> None:
        """The direct ways follow the BAR."""
        try:
            self._host_bars[bar.index].move(bar.mapped)
        except HostError as error:
            self._complain(f"BAR {bar.index} is reached by exits only: {error}")

    def quiet(self) -> None:
        """End its DMA: it may not be master of the bus until its driver says so again."""
        self._config.send(pci.COMMAND, 2, 0)

    def reset(self) -> None:
        """As after power-on, the device itself as well."""
        if self._config.gone:
            return
        self.interrupts.switch(None)
        self.quiet()
        self._decode_off()
        self._config.wake()
        try:
            self._device.reset()
        except OSError as error:
            self._complain(
                f"the host cannot reset it alone ({error.strerror}): its driver finds it as the"
                " last one left it"
            )
        if self.msix:
            self.msix.reset()
        super().reset()
        self._settle_interrupts()

    def close(self) -> None:
        """Give it back to the host, which stops it. Harmless when repeated."""
        for close in self._closers:
            close()
        self._closers.clear()
        self._device.close()

    def inspect(self) -> dict[str, object]:
        """What it is on the host, and how it interrupts."""
        kind = self.interrupts.kind
        return {
            **super().inspect(),
            "host": self._device.name,
            "gone": self._config.gone,
            "mapped": {index: bar.mapped for index, bar in self._host_bars.items()},
            "interrupts": "none" if kind is None else kind.name.lower(),
            "msix": self.msix.inspect() if self.msix else None,
        }

    # -- what is ours in configuration space ---------------------------------------------------

    def _claim_header(self) -> None:
        config = self._config
        config.tell_device(pci.COMMAND, 2)
        config.declare(pci.BAR0, bytes(4 * pci.BARS))
        config.declare(pci.EXPANSION_ROM, bytes(4))
        kind = config.get(pci.HEADER_TYPE, 1) & ~pci.MULTIFUNCTION
        config.declare(pci.HEADER_TYPE, bytes([kind]))
        pin = pci.INTA if self._device.irq(Irq.INTX).count else 0
        config.declare(pci.INTERRUPT_PIN, bytes([pin]))

    def _claim_capabilities(self) -> None:
        for identifier, at in list(self._config.capabilities()):
            if identifier == CapabilityId.MSI and self._device.irq(Irq.MSI).count:
                self.msi = Msi(self._config, at)
                self._config.watch(at, self.msi.size, after_write=self._settle_interrupts)
            elif identifier == CapabilityId.MSIX and self._device.irq(Irq.MSIX).count:
                self.msix = MsixTable(self._config, at, self.interrupts)
                self._config.watch(at, pci.MsixCapability.SIZE, after_write=self._settle_interrupts)
            elif identifier == CapabilityId.EXPRESS:
                self._integrate(at)
            elif identifier == CapabilityId.POWER_MANAGEMENT:
                control = at + pci.POWER_CONTROL
                self._config.follow_power(control)
                self._config.watch(control, 1, after_write=self._decode_changed)

    def _integrate(self, at: int) -> None:
        """An express endpoint on bus 0 is one of the root complex, and these have no link."""
        config = self._config
        flags = config.get(at + Express.FLAGS, 2)
        if flags & Express.TYPE != Express.ENDPOINT:
            return
        flags |= Express.INTEGRATED_ENDPOINT
        config.declare(at + Express.FLAGS, flags.to_bytes(2, "little"))
        config.declare(at + Express.LINK, bytes(Express.LINK_SIZE))
        if flags & Express.VERSION >= 2:
            config.declare(at + Express.LINK2, bytes(Express.LINK_SIZE))

    # -- BARs ----------------------------------------------------------------------------------

    def _add_bars(self) -> None:
        config = self._device.region(7)
        for index in range(pci.BARS):
            region = self._device.region(index)
            register = self._device.read(config, pci.BAR0 + 4 * index, 4)
            if not region.size or register & pci.IO_BAR:
                continue
            if not is_power_of_two(region.size):
                raise OSError(f"BAR {index} has {region.size} bytes, which no PCI device has")
            bar = HostBar(self._device, region, self._windows, self._overlays(index))
            self._host_bars[index] = bar
            self.add_bar(
                index,
                region.size,
                bar,
                name=f"bar {index}",
                wide=register & pci.BAR_TYPE == pci.BarFlags.TYPE_64,
                prefetchable=bool(register & pci.BarFlags.PREFETCHABLE),
            )

    def _overlays(self, index: int) -> list[Overlay]:
        table = self.msix
        if table is None:
            return []
        found = []
        if table.bar == index:
            found.append(Overlay(table.offset, table.offset + table.size, table))
        if table.pba_bar == index:
            pending = table.pba
            found.append(Overlay(table.pba_offset, table.pba_offset + pending.size, pending))
        return found

    def _decode_off(self) -> None:
        """Nobody reaches its BARs any more."""
        command = self.config.get(pci.COMMAND, 2)
        self.config.set(pci.COMMAND, 2, command & ~pci.Command.MEMORY_SPACE)
        self._decode_changed()

    # -- interrupts ----------------------------------------------------------------------------

    def _settle_interrupts(self) -> None:
        """Switch to the kind that the guest has enabled, and follow its messages."""
        if self.msix and self.msix.enabled:
            self.interrupts.switch(Irq.MSIX)
            self.msix.settle()
        elif self.msi and self.msi.enabled:
            messages = self.msi.messages
            self.interrupts.switch(Irq.MSI, len(messages))
            for vector, message in enumerate(messages):
                self.interrupts.send(vector, message)
        else:
            self.interrupts.switch(Irq.INTX)

    # -- what the host says --------------------------------------------------------------------

    def _listen(self, watch: Watch, kind: Irq, heard: Callable[[], None]) -> None:
        if self._device.irq(kind).count:
            fd, close = watch(heard)
            self._closers.append(close)
            self._device.signal_by(kind, [fd])

    def _on_request(self) -> None:
        """The host wants the device back: to the guest, it is pulled out of its slot."""
        if self._config.gone:
            return
        self._complain("the host takes it away: for the guest, it is gone")
        self._decode_off()
        self.interrupts.switch(None)
        with suppress(OSError):
            self._device.reset()
        self._config.gone = True
        self.on_gone()
        self.close()

    def _on_error(self) -> None:
        self._complain("it reports an error that it cannot correct: its data may be wrong now")

    def _complain(self, line: str) -> None:
        """Tell of it: all in the trace, to the user each line once, and not too many."""
        self._trace.emit("vfio", "trouble", device=self.name, why=line)
        if line not in self._said and len(self._said) < _MOST_LINES:
            self._said.add(line)
            self._warn(f"{self.name} ({self._device.name}): {line}")
