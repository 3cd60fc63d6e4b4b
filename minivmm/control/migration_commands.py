"""QMP commands that move a machine to another process, in the shapes of QEMU 7.2's migration.json.

What QEMU has for other ways to do it (postcopy, multifd, block migration, ...) is refused by name.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from minivmm.control.commands import Nothing, command
from minivmm.control.face import Context
from minivmm.errors import Refused
from minivmm.memory.region import PAGE_SIZE
from minivmm.migration.migration import Migration
from minivmm.migration.progress import Progress, Status

RamInfo = TypedDict(
    "RamInfo",
    {
        "transferred": int,
        "remaining": int,
        "total": int,
        "duplicate": int,
        "skipped": int,
        "normal": int,
        "normal-bytes": int,
        "dirty-pages-rate": int,
        "mbps": float,
        "dirty-sync-count": int,
        "page-size": int,
    },
)
"""MigrationStats: bytes, but for `duplicate` (pages of zeroes), `normal` and rates, in pages."""

MigrationInfo = TypedDict(
    "MigrationInfo",
    {
        "status": NotRequired[Status],
        "ram": NotRequired[RamInfo],
        "total-time": NotRequired[int],
        "setup-time": NotRequired[int],
        "expected-downtime": NotRequired[int],
        "downtime": NotRequired[int],
        "error-desc": NotRequired[str],
    },
)
"""MigrationInfo; times are milliseconds. Nothing at all before the first migration."""

MigrationParameters = TypedDict(
    "MigrationParameters", {"max-bandwidth": int, "downtime-limit": int, "compress-level": int}
)
"""Those of QEMU's that there are here; `compress-level` 0 does not compress."""

Capability = Literal["events"]


class CapabilityStatus(TypedDict):
    """MigrationCapabilityStatus."""

    capability: Capability
    state: bool


@command("migrate")
def migrate(context: Context, uri: str, detach: bool = True) -> Nothing:
    """Begin to move the VM to the target that listens at `uri` (docs/migration.md)."""
    _migration(context).start(uri)
    return {}


@command("migrate_cancel")
def migrate_cancel(context: Context) -> Nothing:
    """Give the migration up, if there is one: the VM runs on here."""
    _migration(context).cancel()
    return {}


@command("query-migrate")
def query_migrate(context: Context) -> MigrationInfo:
    """How far the last migration is, or how it ended; out of this process, or into it."""
    progress = _migration(context).progress
    if progress.status == "none":
        return {}
    found: MigrationInfo = {
        "status": progress.status,
        "total-time": _milliseconds(progress.seconds),
        "ram": _ram(progress),
    }
    if progress.ready is not None:
        found["setup-time"] = _milliseconds(progress.ready - progress.began)
    if progress.status == "active" and progress.expected_downtime is not None:
        found["expected-downtime"] = _milliseconds(progress.expected_downtime)
    if progress.status == "completed" and progress.downtime is not None:
        found["downtime"] = _milliseconds(progress.downtime)
    if progress.error:
        found["error-desc"] = progress.error
    return found


@command("migrate-set-parameters")
def migrate_set_parameters(
    context: Context,
    max_bandwidth: int | None = None,
    downtime_limit: int | None = None,
    compress_level: int | None = None,
) -> Nothing:
    """Change limits, of a migration that is under way too; texts are QEMU's."""
    parameters = _migration(context).parameters
    if max_bandwidth is not None and not 0 <= max_bandwidth < 1 << 63:
        raise _expects("max_bandwidth", "an integer in the range of 0 to SIZE_MAX bytes/second")
    if downtime_limit is not None and not 0 <= downtime_limit <= 2_000_000:
        raise _expects("downtime_limit", "an integer in the range of 0 to 2000000 ms")
    if compress_level is not None and not 0 <= compress_level <= 9:
        raise _expects("compress_level", "a value between 0 and 9")
    if max_bandwidth is not None:
        parameters.max_bandwidth = max_bandwidth
    if downtime_limit is not None:
        parameters.downtime_limit = downtime_limit
    if compress_level is not None:
        parameters.compress_level = compress_level
    return {}


@command("query-migrate-parameters")
def query_migrate_parameters(context: Context) -> MigrationParameters:
    """The limits that hold."""
    parameters = _migration(context).parameters
    return {
        "max-bandwidth": parameters.max_bandwidth,
        "downtime-limit": parameters.downtime_limit,
        "compress-level": parameters.compress_level,
    }


@command("query-migrate-capabilities")
def query_migrate_capabilities(context: Context) -> list[CapabilityStatus]:
    """`events` is always on: MIGRATION and MIGRATION_PASS tell how it goes."""
    return [{"capability": "events", "state": True}]


@command("migrate-set-capabilities")
def migrate_set_capabilities(context: Context, capabilities: list[object]) -> Nothing:
    """There is one, and it cannot be turned off."""
    for one in capabilities:
        if one != {"capability": "events", "state": True}:
            raise Refused(f"capability {one!r} is not available: only events, which is always on")
    return {}


def _migration(context: Context) -> Migration:
    if context.migration is None:
        raise Refused("this VM cannot be migrated")
    return context.migration()


def _ram(progress: Progress) -> RamInfo:
    return {
        "transferred": progress.sent,
        "remaining": progress.remaining,
        "total": progress.total,
        "duplicate": progress.zeroes // PAGE_SIZE,
        "skipped": 0,
        "normal": progress.data // PAGE_SIZE,
        "normal-bytes": progress.data,
        "dirty-pages-rate": round(progress.dirty_rate) // PAGE_SIZE,
        "mbps": progress.sent * 8 / 1e6 / max(progress.seconds, 1e-6),
        "dirty-sync-count": progress.rounds,
        "page-size": PAGE_SIZE,
    }


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _expects(name: str, what: str) -> Refused:
    return Refused(f"Parameter '{name}' expects {what}")
