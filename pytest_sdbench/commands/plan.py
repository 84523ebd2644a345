"""Write a plan for people: a table, totals, and what is to be fetched, placed or mended."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from pytest_sdbench.base.environment import device_name, devices_of
from pytest_sdbench.base.options import DTYPES, weights_by_card
from pytest_sdbench.base.paths import told
from pytest_sdbench.base.text import duration, size_text
from pytest_sdbench.commands.doctor import lacking
from pytest_sdbench.commands.plan_cost import Plan, Row
from pytest_sdbench.commands.plan_disk import ESTIMATED, MEASURED
from pytest_sdbench.commands.plan_time import ALLOWANCE
from pytest_sdbench.commands.shared import cards_of, check_counts, share, show, write_figures
from pytest_sdbench.gate.looks import UNASKED
from pytest_sdbench.report.cells import plain_table
from pytest_sdbench.store.folders import place_of


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    share(command, "cards", "--images", "--store", "--data", "--device", "--weights", "--json")
    share(command, "--keep-images")
    command.add_argument("--dtype", choices=DTYPES, help="another precision than the protocol's")
    told = "plan for this protocol, in place of those that the cards are judged by; may be repeated"
    command.add_argument("--protocol", action="append", default=[], metavar="NAME", help=told)
    told = "time no network: only what the store knows of times"
    command.add_argument("--no-timing", action="store_true", help=told)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    from pytest_sdbench.base.environment import torch_device
    from pytest_sdbench.base.workspace import Workspace
    from pytest_sdbench.commands.plan_cost import figures, plan

    check_counts(options, "images")
    device = torch_device(options.device, option="--device")
    made = plan(
        cards_of(options.cards),
        Workspace(options.store, options.data, device, options.dtype, keep_images=options.keep_images),
        images=options.images,
        protocols=options.protocol,
        weights=weights_by_card(options.weights),
        timing=not options.no_timing,
        tell=lambda line: show(line, sys.stderr),
    )
    show(report(made))
    write_figures(figures(made), options.json)
    return 0 if made.ready else 1


def report(plan: Plan) -> str:
    """Return the table of a plan, its totals, how they were found, and what lacks."""
    parts = [_table(plan.rows), "", _totals(plan), *_explained(plan)]
    if plan.downloads:
        rows = []
        for download, users in plan.downloads.items():
            size = "?" if download.size is None else f"about {size_text(download.size)}"
            few = ", ".join(users) if len(users) < 4 else f"{', '.join(users[:2])} and {len(users) - 2} more"
            rows.append([download.what, size, few])
        headings = ("to download (--sdbench-download does it)", "size", "for")
        parts += ["", plain_table(headings, rows, "lrl")]
    notes = lacking([finding for row in plan.rows for finding in row.unfetched])
    if notes:
        parts += ["\nTo be placed or mended by you:", *notes]
    elif plan.ready:
        parts.append("\nNothing is missing: all of it can be run.")
    return "\n".join(parts)


def _table(rows: Iterable[Row]) -> str:
    lines, before = [], ""
    for row in rows:
        name = f"+ {row.card}" if row.beside else "" if row.card == before else row.card
        lines.append([name, *_cells(row), "yes" if row.ready else "no"])
        before = row.beside or row.card
    upper = ("", "", "", "in", "to", "", "how", "", "")
    lower = ("name", "protocol", "images", "store", "make", "time", "known", "disk", "ok")
    headings = [f"{above}\n{below}" for above, below in zip(upper, lower, strict=True)]
    return plain_table(headings, lines, "llrrrrlrl")


def _cells(row: Row) -> list[str]:
    if not row.protocol:
        return ["-"] * 7
    stored = f"{row.images - row.missing:,}" if row.looked else "?"
    counts = [row.protocol, f"{row.images:,}", stored, f"{row.missing:,}"]
    if not row.missing:
        return [*counts, "-", "", "-"]
    time = "?" if row.seconds is None else f"{'>' if row.timed_in else ''}{duration(row.seconds)}"
    return [*counts, time, row.basis, "?" if row.bytes is None else size_text(row.bytes + row.picture_bytes)]


def _totals(plan: Plan) -> str:
    if not plan.missing:
        return "No image is to be made."
    least = ">" if any(row.timed_in for row in plan.counted) else ""
    time = "time not known"
    if plan.seconds is not None:
        time = f"{least}{duration(plan.seconds)} on {_where(plan.device)}"
    lines = [f"In all: {plan.missing:,} images to make: {time}"]
    if plan.bytes is not None:
        lines.append(f"        {size_text(plan.bytes)} of evidence in {told(plan.store)}")
    if plan.picture_bytes:
        most = "at most " if any(row.picture_basis == ESTIMATED for row in plan.counted) else ""
        lines.append(f"        {most}{size_text(plan.picture_bytes)} of pictures beside it")
    if plan.download_bytes:
        lines.append(f"        about {size_text(plan.download_bytes)} of downloads")
    return "\n".join([*lines, ""])


def _explained(plan: Plan) -> list[str]:
    rows, found = [row for row in plan.rows if row.missing], []
    if len(plan.counted) < len(rows):
        found.append(
            "Protocols that differ only in their number of images share them, and count once in all."
        )
    if any(row.beside for row in plan.rows):
        found.append("+: the reference; the pictures above it are compared with its own, one by one.")
    found += [f"no pairs of {row.card}: {row.unpaired} ({row.protocol})" for row in plan.rows if row.unpaired]
    if any(not row.looked for row in rows):
        found.append("? in store: images are kept by the content of the weights, which are not here.")
    if any(row.basis == MEASURED for row in rows):
        found.append("measured: what an image last took with this set-up, as the store says.")
    if any(row.basis == ESTIMATED for row in rows):
        found.append(
            "estimated: one U-Net call, timed now with random weights, times the calls of the protocol;\n"
            f"  decoding reckoned from it; {ALLOWANCE:.0%} on top for text, codec, extractors. "
            "Expect it within a factor of 2."
        )
    if known := {row.picture_basis for row in rows if row.pictures}:
        how = "by the pixels of a picture" if ESTIMATED in known else "by those that are kept already"
        found.append(f"pictures: reckoned {how}; --keep-images N, all or none says how many are kept.")
    for precision in sorted({row.timed_in for row in rows if row.timed_in}):
        found.append(
            f">: timed in {precision}; the protocol draws in float16, which may take a CPU many times as "
            "long.\n"
            f"  --dtype {precision} plans what --sdbench-dtype {precision} does: comparable with no claim."
        )
    found += [f"no time: {reason}" for reason in dict.fromkeys(row.untimed for row in rows if row.untimed)]
    if plan.temporary_bytes:
        # This process has made them as well, so that what is free is told without them.
        size = size_text(plan.temporary_bytes)
        found.append(f"Converted weights take {size} of {tempfile.gettempdir()} while a process runs.")
    if plan.device.startswith("cpu") and any(row.missing > UNASKED for row in rows):
        most = "only with --sdbench-max-images all"
        found.append(f"On a CPU pytest makes more than {UNASKED:,} images of a row {most}.")
    unjudged = [row.card for row in plan.rows if not row.protocol and not row.broken]
    if unjudged:
        found.append(f"Judged by no protocol, so no image is needed: {', '.join(unjudged)}")
    return [*found, *(f"Damaged: {text}" for text in plan.warnings), *_space(plan)]


def _space(plan: Plan) -> list[str]:
    """Compare what is to be written with what is free, disk by disk."""
    from huggingface_hub.constants import HF_HUB_CACHE

    wanted = [(Path(HF_HUB_CACHE), plan.download_bytes or 0)]
    notes = []
    store = place_of(str(plan.store))
    if isinstance(store, Path):
        wanted.append((store, (plan.bytes or 0) + plan.picture_bytes))
    else:
        notes.append(f"What is free in {told(store)} cannot be known from here.")
    disks: dict[int, tuple[Path, int]] = {}
    for folder, size in wanted:
        parents = (folder.absolute(), *folder.absolute().parents)
        here = next(parent for parent in parents if os.path.exists(parent))
        disk = os.stat(here).st_dev
        disks[disk] = here, disks.get(disk, (here, 0))[1] + size
    for here, size in disks.values():
        free = size_text(shutil.disk_usage(here).free)
        if size > shutil.disk_usage(here).free:
            to_write = f"{size_text(size)} are to be written to the disk of {here}"
            notes.append(f"WARNING: {to_write}, and {free} are free.")
    return notes


def _where(device: str) -> str:
    name = device_name(device)
    if not device.startswith("cpu"):
        count = len(devices_of(device))
        return f"{device} ({f'{count} x ' if count > 1 else ''}{name})"
    import torch

    threads = torch.get_num_threads()
    return f"{name} ({threads} thread{'s' if threads > 1 else ''})"
