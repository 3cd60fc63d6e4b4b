"""The kernel matrix: scenarios on kernels, device options and VMMs (docs/matrix.md).

What is imported here is for files with scenarios of one's own:

    from minivmm.matrix import scenario

    @scenario(online="online_kernel")
    def there_and_back(guest, note):
        note("grow-seconds-per-gib", guest.resize("512M").check().seconds_per_gib)
        guest.resize(0).check()
"""

from minivmm.matrix.guest import Failed, Guest, HostUse, Ran, Resized, Setup, Skipped
from minivmm.matrix.scenario import Note, Scenario, scenario

__all__ = [
    "Failed",
    "Guest",
    "HostUse",
    "Note",
    "Ran",
    "Resized",
    "Scenario",
    "Setup",
    "Skipped",
    "scenario",
]
