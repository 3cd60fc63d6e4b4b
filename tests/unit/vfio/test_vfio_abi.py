"""VFIO's structures and numbers against the kernel's header, where that is installed."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from enum import IntFlag
from pathlib import Path

import pytest

from minivmm.vfio import abi
from minivmm.vfio.ioctl import Ioctl

HEADER = Path("/usr/include/linux/vfio.h")

STRUCTURES = {
    abi.GroupStatus: "vfio_group_status",
    abi.CapHeader: "vfio_info_cap_header",
    abi.DeviceInfo: "vfio_device_info",
    abi.RegionInfo: "vfio_region_info",
    abi.SparseMmap: "vfio_region_info_cap_sparse_mmap",
    abi.SparseArea: "vfio_region_sparse_mmap_area",
    abi.IrqInfo: "vfio_irq_info",
    abi.IrqSet: "vfio_irq_set",
    abi.HotReset: "vfio_pci_hot_reset",
    abi.IommuInfo: "vfio_iommu_type1_info",
    abi.IovaRange: "vfio_iova_range",
    abi.IovaRanges: "vfio_iommu_type1_info_cap_iova_range",
    abi.DmaAvail: "vfio_iommu_type1_info_dma_avail",
    abi.DmaMap: "vfio_iommu_type1_dma_map",
    abi.DmaUnmap: "vfio_iommu_type1_dma_unmap",
}

FLAGS: dict[str, type[IntFlag]] = {
    "VFIO_DEVICE_FLAGS": abi.DeviceFlags,
    "VFIO_REGION_INFO_FLAG": abi.RegionFlags,
    "VFIO_IRQ_INFO": abi.IrqFlags,
}

VALUES = {
    "VFIO_API_VERSION": abi.API_VERSION,
    "VFIO_TYPE1v2_IOMMU": abi.TYPE1V2_IOMMU,
    "VFIO_GROUP_FLAGS_VIABLE": abi.GROUP_VIABLE,
    "VFIO_REGION_INFO_CAP_SPARSE_MMAP": abi.REGION_CAP_SPARSE_MMAP,
    "VFIO_IRQ_SET_DATA_NONE": abi.SetFlags.DATA_NONE,
    "VFIO_IRQ_SET_DATA_EVENTFD": abi.SetFlags.DATA_EVENTFD,
    "VFIO_IRQ_SET_ACTION_UNMASK": abi.SetFlags.UNMASK,
    "VFIO_IRQ_SET_ACTION_TRIGGER": abi.SetFlags.TRIGGER,
    "VFIO_PCI_CONFIG_REGION_INDEX": abi.Region.CONFIG,
    "VFIO_PCI_ROM_REGION_INDEX": abi.Region.ROM,
    "VFIO_PCI_MSI_IRQ_INDEX": abi.Irq.MSI,
    "VFIO_PCI_MSIX_IRQ_INDEX": abi.Irq.MSIX,
    "VFIO_PCI_ERR_IRQ_INDEX": abi.Irq.ERROR,
    "VFIO_PCI_REQ_IRQ_INDEX": abi.Irq.REQUEST,
    "VFIO_IOMMU_INFO_CAPS": abi.IOMMU_INFO_CAPS,
    "VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE": abi.IOMMU_CAP_IOVA_RANGE,
    "VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL": abi.IOMMU_CAP_DMA_AVAIL,
    "VFIO_DMA_MAP_FLAG_READ": abi.DMA_READ,
    "VFIO_DMA_MAP_FLAG_WRITE": abi.DMA_WRITE,
}

IOMMUFD = {
    "IOMMU_IOAS_ALLOC": (0x3B81, abi.IoasAlloc, 12),
    "IOMMU_IOAS_IOVA_RANGES": (0x3B84, abi.IoasIovaRanges, 32),
    "IOMMU_IOAS_MAP": (0x3B85, abi.IoasMap, 40),
    "IOMMU_IOAS_UNMAP": (0x3B86, abi.IoasUnmap, 24),
    "DEVICE_BIND_IOMMUFD": (0x3B76, abi.BindIommufd, 16),
    "DEVICE_ATTACH_IOMMUFD_PT": (0x3B77, abi.AttachIommufd, 12),
}
"""Linux 6.12: number, structure, its size. Debian 12's headers have none of these."""


@pytest.mark.parametrize("name", IOMMUFD)
def test_iommufd_is_that_of_linux(name: str) -> None:
    number, kind, size = IOMMUFD[name]

    assert Ioctl[name] == number
    assert ctypes.sizeof(kind) == size


def test_the_kernels_header_agrees(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None or not HEADER.exists():
        pytest.skip("no C compiler or no <linux/vfio.h>: install gcc and linux-libc-dev")
    claims = [
        f"VFIO_{name} == {request.value:#x}UL"
        for name, request in Ioctl.__members__.items()
        if name not in IOMMUFD
    ]
    claims += [f"{name} == {int(value)}" for name, value in VALUES.items()]
    claims += [f"{prefix}_{one.name} == {one.value}" for prefix, of in FLAGS.items() for one in of]
    for kind, name in STRUCTURES.items():
        claims += [
            f"offsetof(struct {name}, {field[0]}) == {getattr(kind, field[0]).offset}"
            for field in kind._fields_
            if field[0] != "pad"  # younger than some headers, and at the end
        ]
    source = tmp_path / "claims.c"
    asserts = "\n".join(f'_Static_assert({claim}, "{claim}");' for claim in claims)
    source.write_text(f"#include <stddef.h>\n#include <linux/vfio.h>\n{asserts}\n")

    done = subprocess.run(
        [compiler, "-fsyntax-only", "-w", str(source)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
