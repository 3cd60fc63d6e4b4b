"""Wire truth of virtio-mem, byte by byte (reference A.2 to A.4)."""

from __future__ import annotations

from minivmm.spec.virtio_mem import (
    DEVICE_ID,
    BlockState,
    Feature,
    MemConfig,
    MemRequest,
    MemResponse,
    RequestType,
    ResponseType,
)


def test_device_id() -> None:
    assert DEVICE_ID == 24


def test_config_layout() -> None:
    assert MemConfig.layout() == [
        (0, 8, "block_size"),
        (8, 2, "node_id"),
        (10, 6, "padding"),
        (16, 8, "addr"),
        (24, 8, "region_size"),
        (32, 8, "usable_region_size"),
        (40, 8, "plugged_size"),
        (48, 8, "requested_size"),
    ]
    assert MemConfig.SIZE == 56


def test_request_layout() -> None:
    assert MemRequest.layout() == [
        (0, 2, "type"),
        (2, 6, "padding"),
        (8, 8, "addr"),
        (16, 2, "nb_blocks"),
        (18, 6, "payload_padding"),
    ]
    assert MemRequest.SIZE == 24


def test_response_layout() -> None:
    assert MemResponse.layout() == [(0, 2, "type"), (2, 6, "padding"), (8, 2, "state")]
    assert MemResponse.SIZE == 10


def test_request_bytes_are_little_endian() -> None:
    request = MemRequest(type=RequestType.UNPLUG, addr=0x1_4000_0000, nb_blocks=0x0140)

    assert request.build() == bytes.fromhex("0100 000000000000 0000004001000000 4001 000000000000")


def test_numbers_of_requests_answers_and_states() -> None:
    assert [item.name for item in sorted(RequestType)] == ["PLUG", "UNPLUG", "UNPLUG_ALL", "STATE"]
    assert [item.name for item in sorted(ResponseType)] == ["ACK", "NACK", "BUSY", "ERROR"]
    assert [item.name for item in sorted(BlockState)] == ["PLUGGED", "UNPLUGGED", "MIXED"]
    assert [*RequestType, *ResponseType, *BlockState] == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2]


def test_feature_bits() -> None:
    assert [(item.name, int(item)) for item in Feature] == [
        ("ACPI_PXM", 1),
        ("UNPLUGGED_INACCESSIBLE", 2),
        ("PERSISTENT_SUSPEND", 4),
    ]
