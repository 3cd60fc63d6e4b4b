"""Lines of the human monitor about migration, laid out as QEMU does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from minivmm.control import migration_commands as qmp
from minivmm.control.face import Context
from minivmm.control.hmp_line import Line
from minivmm.units import KIB


def _migrate(context: Context, uri: str, *, flag: bool = False) -> Iterable[str]:
    """QEMU's monitor waits for the end without -d; ours never does."""
    qmp.migrate(context, uri)
    return []


def _cancel(context: Context) -> Iterable[str]:
    qmp.migrate_cancel(context)
    return []


def _info(context: Context) -> Iterator[str]:
    found = qmp.query_migrate(context)
    if "status" not in found:
        return
    why = f" ({found['error-desc']})" if "error-desc" in found else ""
    yield f"Migration status: {found['status']}{why}"
    times = {
        "total time": found.get("total-time"),
        "expected downtime": found.get("expected-downtime"),
        "downtime": found.get("downtime"),
        "setup": found.get("setup-time"),
    }
    for name, milliseconds in times.items():
        if milliseconds is not None:
            yield f"{name}: {milliseconds} ms"
    ram = found["ram"]
    yield f"transferred ram: {ram['transferred'] // KIB} kbytes"
    yield f"throughput: {ram['mbps']:0.2f} mbps"
    yield f"remaining ram: {ram['remaining'] // KIB} kbytes"
    yield f"total ram: {ram['total'] // KIB} kbytes"
    for name in ("duplicate", "skipped", "normal"):
        yield f"{name}: {ram[name]} pages"  # type: ignore[literal-required]
    yield f"normal bytes: {ram['normal-bytes'] // KIB} kbytes"
    yield f"dirty sync count: {ram['dirty-sync-count']}"
    yield f"page size: {ram['page-size'] // KIB} kbytes"


def _parameters(context: Context) -> Iterator[str]:
    found = qmp.query_migrate_parameters(context)
    yield f"max-bandwidth: {found['max-bandwidth']} bytes/second"
    yield f"downtime-limit: {found['downtime-limit']} ms"
    yield f"compress-level: {found['compress-level']}"


LINES = (
    Line(("migrate",), "move the VM to the target at URI", _migrate, ("uri",), flag="-d"),
    Line(("migrate_cancel",), "give a migration up", _cancel),
)

INFO = (
    Line(("migrate",), "how far a migration is, or how it ended", _info),
    Line(("migrate_parameters",), "limits of migrations", _parameters),
)
