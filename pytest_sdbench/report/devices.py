"""What a U-Net call takes, a table for each device: figures of two are never compared."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_sdbench.cards.records import DeviceRecord
from pytest_sdbench.report.cells import mebibytes
from pytest_sdbench.report.grids import Grid, cells, github

_HEADING = ("Model", "Precision", "Mode", "Measures", "Batch", "s/call", "Samples/s", "TMAC/s", "Peak memory")


def device_tables(networks: Sequence[tuple[str, Sequence[DeviceRecord]]]) -> str:
    """Return the tables of `device_grids` as GitHub Markdown."""
    return github(device_grids(networks))


def device_grids(networks: Sequence[tuple[str, Sequence[DeviceRecord]]]) -> list[Grid]:
    """Return a table for each device that any of the named networks was measured on."""
    grids = []
    for device in dict.fromkeys(record.device for _, records in networks for record in records):
        rows = tuple(
            cells(
                [
                    name,
                    record.dtype,
                    record.mode,
                    record.measures,
                    str(record.batch),
                    f"{record.seconds:.3g}",
                    f"{record.samples_per_second:.3g}",
                    f"{record.macs_per_second / 1e12:.3g}",
                    mebibytes(record.peak_bytes),
                ]
            )
            for name, records in networks
            for record in records
            if record.device == device
        )
        grids.append(Grid(f"One U-Net call on {device}", _HEADING, rows, left=4))
    return grids
