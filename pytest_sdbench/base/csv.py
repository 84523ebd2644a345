"""Read CSV, in the one dialect that is taken: commas, double quotes, UTF-8."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from pytest_sdbench.base.errors import DataError


def csv_rows(content: bytes, *, loose: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a CSV file, the header too: the number of the line that each ends in, and its fields.

    A blank line is a row without fields. Where it is `loose`, spaces after a comma do not count, and rows
    without a word and the `sep=,` that Excel takes are passed over. Raises DataError, with the line, for what
    is no UTF-8 or malformed.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as bad:
        line, found = bad.object.count(b"\n", 0, bad.start) + 1, bad.object[bad.start : bad.end]
        raise DataError("this is not UTF-8", key=f"line {line}", found=found) from None
    header = text.partition("\n")[0]
    if "," not in header and (other := next((sign for sign in (";", "\t") if sign in header), None)):
        told = "semicolons" if other == ";" else "tabs"
        raise DataError(f"fields are separated by commas here, and by {told} in this file", key="line 1")
    # Columns that nobody asks for may be long. The module has one limit for all readers: it only grows.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=loose)
    try:
        for row in reader:
            is_idle = not any(map(str.strip, row)) or (reader.line_num, ",".join(row)) == (1, "sep=,")
            if not (loose and is_idle):
                yield reader.line_num, row
    except csv.Error as bad:
        raise DataError(f"malformed CSV: {bad}", key=f"line {reader.line_num}") from None
