"""VirtioMemSpec: what the user says about a virtio-mem device, with QEMU's property names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from minivmm.devices.spec import VirtioDeviceSpec
from minivmm.errors import UsageError
from minivmm.memory.backing import KINDS, THP, Backing
from minivmm.memory.hugepages import thp_size
from minivmm.memory.region import PAGE_SIZE
from minivmm.options import choice_option, number_option, option, size_option, switch_option
from minivmm.spec.platform import MAX_NODES
from minivmm.units import MIB, TIB, align_down, format_size, is_power_of_two, powers_of_two_around

MINIMUM_BLOCK_SIZE = max(MIB, PAGE_SIZE)
"""Blocks consist of whole host pages; below 1 MiB there would be too many of them (as QEMU)."""


def _huge_page() -> int:
    """Bytes in a huge page: the host's transparent ones, else what x86 has."""
    return thp_size() or 2 * MIB


MAXIMUM_SIZE = 16 * TIB
"""Largest region."""

PROTECTIONS = ("off", "report", "stop", "kill")


@dataclass(frozen=True, kw_only=True)
class VirtioMemSpec(VirtioDeviceSpec):
    """A virtio-mem device; sizes in bytes. Raises UsageError when constructed from nonsense."""

    prefix: ClassVar[str] = "vmem"
    paths: ClassVar[tuple[str, ...]] = ("path",)
    longest: ClassVar[int] = 2  # request and response

    id: str = option("name of the device", default="vmem0")
    size: int = size_option("most memory that the guest can have from it")
    requested_size: int = size_option("memory that the guest should have at boot", default=0)
    block_size: int = size_option(
        "unit of plugging: a power of two of at least 1M (automatic: a transparent huge page, or"
        " page-size if that is larger); smaller ones cost huge pages",
        default=None,
    )
    memaddr: int | None = size_option("guest physical address of the region", default=None)
    node: int = number_option("NUMA node (ACPI proximity domain) of the memory", default=0)
    unplugged_inaccessible: str = choice_option(
        "must the driver promise never to read unplugged memory? auto: as the backing needs it,"
        " anon works with old drivers that cannot; on: refuse those; off: do not ask",
        ("auto", "on", "off"),
        default="auto",
    )
    backing: str = choice_option(
        "host memory: anon is private, memfd and file can be shared, hugetlb is huge pages",
        KINDS,
        default="anon",
    )
    path: str | None = option("file that backs the memory (backing=file)", default=None)
    page_size: int = size_option(
        "size of the host's pages (backing=hugetlb): 2M, or 1G for gigantic pages", default=None
    )
    thp: str | None = choice_option(
        "transparent huge pages: on asks for them, off forbids them, madvise-default leaves it to"
        " the host (automatic: on, unless blocks are smaller than huge pages)",
        THP,
        default=None,
    )
    prealloc: bool | None = switch_option(
        "populate memory when it is plugged, and answer BUSY if the host is out of it"
        " (automatic: on for hugetlb)",
        default=None,
    )
    protect: str = choice_option(
        "what happens when the guest touches unplugged memory: off: nothing; report: it is said;"
        " stop: the machine pauses; kill: it ends",
        PROTECTIONS,
        default="off",
    )

    ioeventfd: bool = switch_option(
        "have KVM take doorbells (QEMU does not, for this device); off: they come as exits, and the"
        " answer is there when the driver looks for it, instead of going to sleep",
        default=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._settle_pages()
        self._check_backing()
        self._check_block_size()
        self._check_sizes()
        if self.node >= MAX_NODES:
            self.refuse(f"node {self.node} is more than Linux knows: use 0 to {MAX_NODES - 1}")

    @property
    def summary(self) -> str:
        """The size."""
        return format_size(self.size)

    @property
    def populates(self) -> bool:
        """Is memory populated when it is plugged?"""
        return self.backing == "hugetlb" if self.prealloc is None else self.prealloc

    @property
    def insists(self) -> bool:
        """Are drivers refused that do not promise to keep away from unplugged memory? (A.8-15)

        Reading a hole of shared memory takes host memory; of private memory it does not.
        """
        if self.unplugged_inaccessible == "auto":
            return self.backing != "anon"
        return self.unplugged_inaccessible == "on"

    @property
    def host_memory(self) -> Backing:
        """What is to stand behind the region."""
        thp = self.thp or ("on" if self.block_size >= _huge_page() else "off")
        return Backing(kind=self.backing, page_size=self.page_size, path=self.path, thp=thp)

    def check_host(self) -> None:
        """Raises HostError naming the one option that this host cannot do, and the remedy.

        Transparent huge pages that nobody asked for by thp=on are welcome but not needed.
        """
        replace(self.host_memory, thp=self.thp or "madvise-default").check_host(self.size)

    def _settle_pages(self) -> None:
        """Fill in page-size and block-size (0 or nothing: automatic, as QEMU has it)."""
        usual = _huge_page() if self.backing == "hugetlb" else PAGE_SIZE
        object.__setattr__(self, "page_size", self.page_size or usual)
        block_size = self.block_size or max(_huge_page(), self.page_size)
        object.__setattr__(self, "block_size", block_size)

    def _check_block_size(self) -> None:
        least = max(MINIMUM_BLOCK_SIZE, self.page_size)
        block = self.block_size
        if not is_power_of_two(block) or block < least:
            near = sorted({max(power, least) for power in powers_of_two_around(block)})
            why = " and a page of its backing" if self.page_size > MINIMUM_BLOCK_SIZE else ""
            self.refuse(
                f"block-size {format_size(block)} is not a power of two of at least"
                f" {format_size(least)}{why} (nearest: {', '.join(map(format_size, near))})"
            )

    def _check_sizes(self) -> None:
        if self.size == 0:
            self.refuse("size 0 leaves nothing to plug: give the most memory the guest may have")
        if self.size > MAXIMUM_SIZE:
            self.refuse(
                f"size {format_size(self.size)} exceeds what a region may have:"
                f" use {format_size(MAXIMUM_SIZE)} or less, or several devices"
            )
        self._check_multiple("size", self.size)
        self._check_multiple("requested-size", self.requested_size)
        if self.requested_size > self.size:
            self.refuse(
                f"requested-size {format_size(self.requested_size)} exceeds size"
                f" {format_size(self.size)}: raise size= or lower requested-size="
            )
        if self.memaddr is not None and self.memaddr % self.block_size:
            below = align_down(self.memaddr, self.block_size)
            self.refuse(
                f"memaddr {self.memaddr:#x} is not a multiple of block-size"
                f" {format_size(self.block_size)} (nearest: {below:#x},"
                f" {below + self.block_size:#x})"
            )

    def _check_backing(self) -> None:
        try:
            self.host_memory  # noqa: B018 - it checks what it is made of
        except UsageError as error:
            self.refuse(str(error))
        if self.thp == "on" and self.block_size < _huge_page():
            self.refuse(
                f"thp=on would populate unplugged neighbours of blocks of"
                f" {format_size(self.block_size)}: use thp=off, or block-size="
                f"{format_size(_huge_page())} or more"
            )
        if self.unplugged_inaccessible == "off" and self.backing != "anon":
            self.refuse(
                f"unplugged-inaccessible=off does not go with backing={self.backing}, where reading"
                " unplugged memory takes host memory: use auto or on, or backing=anon"
            )

    def _check_multiple(self, name: str, value: int) -> None:
        if value % self.block_size:
            below = align_down(value, self.block_size)
            near = [size for size in (below, below + self.block_size) if size or name != "size"]
            self.refuse(
                f"{name} {format_size(value)} is not a multiple of block-size"
                f" {format_size(self.block_size)} (nearest:"
                f" {', '.join(format_size(size) for size in near)})"
            )
