"""What a machine is, and what devices take, as `boot --dry-run` and `--device help` print it."""

from __future__ import annotations

from minivmm.boot.numa import numa_text
from minivmm.cli.text import print_json
from minivmm.machine_spec import DEVICE_TYPES, MachineSpec, spec_to_json
from minivmm.options import describe


def show(spec: MachineSpec, *, as_json: bool) -> None:
    """Print `spec`; the JSON is what --config reads."""
    if as_json:
        print_json(spec_to_json(spec))
        return
    for name, info, default in describe(MachineSpec):
        value = getattr(spec, name.replace("-", "_"))
        print(f"{name + ':':10}{default if value is None else info.show(value)}")
    print(f"{'append:':10}{' '.join(spec.append)}".rstrip())
    for device in spec.devices:
        print(f"{'device:':10}{device.id}, {device.summary}")
    for entry in spec.numa:
        print(f"{'numa:':10}{numa_text(entry)}")


def device_help(devices: list[str]) -> str | None:
    """The text for `--device help` and `--device NAME,help`; None if nobody asks."""
    for text in devices:
        if text in ("help", "?"):
            return "\n".join(DEVICE_TYPES)
        name, _, rest = text.partition(",")
        if "help" in rest.split(",") and name in DEVICE_TYPES:
            rows = describe(DEVICE_TYPES[name])
            return "\n".join(
                f"  {key}=<{info.kind}>  {info.help} (default: {default})"
                if default != "required"
                else f"  {key}=<{info.kind}>  {info.help} (required)"
                for key, info, default in rows
            )
    return None
