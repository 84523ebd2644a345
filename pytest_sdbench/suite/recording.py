"""What a finished run writes: the terminal's tables, report files and records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from pytest_sdbench.base.errors import SdbenchError
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.cards.card import read_card
from pytest_sdbench.cards.edit import write_records
from pytest_sdbench.cards.records import Record
from pytest_sdbench.cards.schema import check_value
from pytest_sdbench.gate.recorded import record_evidence, same_figure
from pytest_sdbench.report.results import Row

_PROVENANCE = ("protocol_fingerprint", "checkpoint_fingerprint", "reference_fingerprint", "device", "date")


def write_records_of(
    rows: Sequence[Row],
    *,
    finished: bool,
    files: Mapping[str, Path],
    replaced: frozenset[str] = frozenset(),
) -> tuple[list[str], list[str], list[str]]:
    """Write what was measured into the cards; return the diffs, and lines of what was refused, and failed.

    Refused are figures of a run that was interrupted, of fewer images than the protocol has, of a checkpoint
    that stood in for the card's own (`replaced` names these cards), and those that cannot be a reference.
    Failed is a card that cannot be read, edited or written.
    """
    _own_fingerprint.cache_clear()  # of an earlier run of this process
    diffs: list[str] = []
    refused: list[str] = []
    failed: list[str] = []
    records: dict[Path, dict[tuple[str, ...], Record]] = {}
    for row in rows:
        if row.test != "quality" or row.measured is None:
            continue
        if (reason := _foreign(row, files[row.node_id], finished, replaced)) is not None:
            refused.append(f"not recorded: {row.node_id}: {reason}")
            continue
        record = _record(row)
        records.setdefault(files[row.node_id], {})[record.key] = record
    for path, found in records.items():
        try:
            known = {record.key: record for record in read_card(path).records}
            changed = []
            for record in found.values():
                if _same(known.get(record.key), record):
                    continue
                # What cannot be a reference keeps no other figure from being one.
                try:
                    value = record.to_dict()["value"]  # as it would stand there: it may round to zero
                    check_value(path, (record.protocol,), record.metric, value, recorded=True)
                except SdbenchError as error:
                    refused.append(f"not recorded: {error}")
                    continue
                changed.append(record)
            diff = write_records(path, changed)
        except SdbenchError as error:
            failed.append(f"not recorded: {error}")
            continue
        if diff:
            diffs.append(diff)
    return diffs, refused, failed


def _foreign(row: Row, path: Path, finished: bool, replaced: frozenset[str]) -> str | None:
    """Return why a figure is not the card's own checkpoint's under the whole protocol; None if it is."""
    if not finished:
        return "the run was interrupted"
    if not row.extra.get("complete"):
        return f"{row.reason}; run without --sdbench-samples, --sdbench-budget and --sdbench-dtype"
    if row.card in replaced:
        return "--sdbench-weights put another checkpoint in the place of the card's own"
    if row.extra.get("checkpoint_fingerprint") == "":
        return "sdbench_pipeline is overridden, and a record names a checkpoint alone"
    try:
        if (own := _own_fingerprint(path)) in (None, row.extra.get("checkpoint_fingerprint")):
            return None
    except SdbenchError as error:
        return f"the checkpoint that the card names is not the one that was measured: {error}"
    return f"sdbench_checkpoint gave another checkpoint than the card names, whose fingerprint is {own}"


@cache
def _own_fingerprint(path: Path) -> str | None:
    """Return the fingerprint of the checkpoint that a card names; None where it names none."""
    from pytest_sdbench.models.checkpoint import resolve

    card = read_card(path)
    if card.checkpoint is None:
        return None
    return resolve(card.checkpoint, card=card.name, near=path.parent).fingerprint


def write_evidence_of(
    rows: Sequence[Row],
    workspace: Workspace,
    *,
    finished: bool,
    files: Mapping[str, Path],
    replaced: frozenset[str],
) -> list[str]:
    """Record what each image of a card's own checkpoint adds to its scores, for pairing.

    Return a line on each file that is new or changed, or could not be written: of the protocols that all
    images were scored under in a run that was finished. The store has them, unless it was emptied since.
    """
    lines = []
    measured = {
        (files[row.node_id], row.protocol, str(row.extra.get("torch_device", "cpu")))
        for row in rows
        if row.test == "quality"
        and row.measured is not None
        and _foreign(row, files[row.node_id], finished, replaced) is None
    }
    for path, protocol, device in sorted(measured):
        try:
            place = record_evidence(read_card(path), protocol, replace(workspace, device=device))
        except SdbenchError as error:
            lines.append(f"images of {path.name} under {protocol} not recorded: {error}")
            continue
        if place is not None:
            lines.append(f"what each image adds is recorded in {place}")
    return lines


def _same(known: Record | None, new: Record) -> bool:
    """Return whether a record says already what was measured: threads and batches move the last digits."""
    if known is None or not same_figure(known, new):
        return False
    return replace(known, value=new.value, standard_error=new.standard_error, date=new.date) == new


def _record(row: Row) -> Record:
    extra: Mapping[str, Any] = row.extra
    assert row.measured is not None
    assert row.n is not None
    return Record(
        metric=row.metric,
        value=row.measured,
        n=row.n,
        protocol=row.protocol,
        standard_error=row.standard_error,
        versions=extra.get("versions", {}),
        **{key: extra.get(key) for key in _PROVENANCE},
    )
