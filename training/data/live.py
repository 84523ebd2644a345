"""Read training pairs anew each time: where latents are not cached."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pytest_sdbench.base.paths import told
from training.data.batch import Examples, tokenize
from training.data.source import BadSample, Pixels, Sample, Source, check_same_size, fit, to_pixels
from training.errors import TrainingError


class LivePairs:
    """Pairs whose pictures are read, by several threads, when they are taken: as pixels, not latents.

    In the place of a corrupt row comes the next good one: so a batch is always full, and always the same.
    A corrupt row is reported once, counted, and noted in the file `record`, for the sittings to come. Files
    beside it that are called the same but for a hyphen and a number are those of other processes.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Any,
        resolution: int | None,
        *,
        upscale: bool = False,
        say: Callable[[str], None] = print,
        record: Path | None = None,
    ) -> None:
        self._source, self._tokenizer, self._resolution = source, tokenizer, resolution
        self._upscale, self._say = upscale, say
        self._readers = ThreadPoolExecutor(min(16, os.cpu_count() or 1), thread_name_prefix="reader")
        self._lock = threading.Lock()
        self._bad_rows: set[int] = set()
        self._skipped: dict[str, str] = {}
        self._record, self._told = record, _read_record(record)
        self._first: list[str] | None = None
        self._told_of_cut = False

    @property
    def group_sizes(self) -> Sequence[int]:
        return self._source.group_sizes

    @property
    def fingerprint(self) -> str:
        return self._source.fingerprint

    @property
    def skipped(self) -> Mapping[str, str]:
        with self._lock:
            return {**_read_record(self._record), **self._skipped}

    def __len__(self) -> int:
        return len(self._source)

    def take(self, rows: Sequence[int], flipped: Sequence[bool] | None = None) -> Examples:
        """Return the pairs of these rows, mirrored where `flipped` says so.

        Raises TrainingError where no row of the source is good, and for a picture of the wrong size.
        """
        some = list(self._readers.map(self._read, rows))
        for sample, image in some:
            size = f"{image.shape[1]}x{image.shape[0]}"
            self._first = self._first or [sample.key, size]
            check_same_size(self._first, sample.key, size)
        tokens, cut = tokenize(self._tokenizer, [sample.caption for sample, _ in some])
        if cut and not self._told_of_cut:
            self._told_of_cut = True
            self._say(
                f"some captions are longer than {self._tokenizer.model_max_length} tokens, as near "
                f"{told(some[0][0].key)}: their ends are cut off"
            )
        return Examples(tokens, pixels=to_pixels([image for _, image in some], flipped))

    def _read(self, row: int) -> tuple[Sample, Pixels]:
        """Return a row, or else the next that is good."""
        for further in range(len(self._source)):
            candidate = (row + further) % len(self._source)
            if candidate in self._bad_rows:
                continue
            try:
                sample = self._source.read(candidate)
                return sample, fit(sample, self._resolution, self._upscale)
            except BadSample as bad:
                self._skip(candidate, bad)
        key, reason = next(iter(self.skipped.items()))
        raise TrainingError("not one usable pair", file=self._source.name, key=key, found=reason)

    def _skip(self, row: int, bad: BadSample) -> None:
        key, reason = told(bad.key), told(bad.reason)
        with self._lock:
            self._bad_rows.add(row)
            known = key in self._skipped
            self._skipped[key] = reason
            if not known and self._record is not None and key not in self._told:
                self._note(self._record, key, reason)
        if not known:
            self._say(f"skipped {key}: {reason}")

    def _note(self, record: Path, key: str, reason: str) -> None:
        """Add a row to the record; a list to look at is worth no training."""
        try:
            record.parent.mkdir(parents=True, exist_ok=True)
            with record.open("a", encoding="utf-8") as file:
                # A line before that a kill cut off takes no other with it.
                file.write("\n" + json.dumps({"key": key, "reason": reason}) + "\n")
        except OSError as error:
            self._say(f"{told(str(record))} cannot be written: {error.strerror or error}")


def _read_record(record: Path | None) -> dict[str, str]:
    if record is None:
        return {}
    files = sorted(record.parent.glob(f"{record.stem.partition('-')[0]}*{record.suffix}"))
    found = {}
    for line in "\n".join(file.read_text(encoding="utf-8") for file in files).splitlines():
        try:
            entry = json.loads(line)
            found[str(entry["key"])] = str(entry["reason"])
        except (ValueError, KeyError):  # a line that a kill cut off: its row is met again
            continue
    return found
