"""GitHub markdown of what a U-Net call takes, a table for each device: figures of two are never compared."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from pytest_sdbench.cards.records import DeviceRecord
from pytest_sdbench.report.tables import NONE

_HEADING = ["Model", "Precision", "Mode", "Measures", "Batch", "s/call", "Samples/s", "TMAC/s", "Peak memory"]


def device_tables(networks: Sequence[tuple[str, Sequence[DeviceRecord]]]) -> str:
    """Return a heading and a table for each device that any of the named networks was measured on."""
    parts = []
    for device in dict.fromkeys(record.device for _, records in networks for record in records):
        rows = [
            [
                name,
                record.dtype,
                record.mode,
                record.measures,
                str(record.batch),
                f"{record.seconds:.3g}",
                f"{record.samples_per_second:.3g}",
                f"{record.macs_per_second / 1e12:.3g}",
                NONE if record.peak_bytes is None else f"{record.peak_bytes / 2**20:,.0f} MiB",
            ]
            for name, records in networks
            for record in records
            if record.device == device
        ]
        table = tabulate(
            rows,
            _HEADING,
            tablefmt="pipe",
            disable_numparse=True,
            colalign=["left"] * 4 + ["right"] * (len(_HEADING) - 4),
        )
        parts.append(f"### One U-Net call on {device}\n\n{table}\n")
    return "\n".join(parts)
