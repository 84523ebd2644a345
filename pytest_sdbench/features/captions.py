"""Find the captions that come with images: tables as the hub's ImageFolder reads them, and files beside.

========================================== =============================================================
``metadata.csv``, ``.jsonl``, ``.parquet`` a row an image: `file_name`, and `text`, `caption` or `prompt`
``NAME.txt`` beside ``NAME.png``           the text
``NAME.json`` beside ``NAME.png``          the `text`, `caption` or `prompt` of the object
========================================== =============================================================
"""

from __future__ import annotations

import io
import json
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from pytest_sdbench.base.csv import csv_rows
from pytest_sdbench.base.errors import DataError
from pytest_sdbench.base.files import json_mapping
from pytest_sdbench.features.archives import Source, readable

TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
CAPTION_KEYS = ("text", "caption", "prompt")
_COLUMNS = ("file_name", *CAPTION_KEYS)

_LARGEST = 2**26
"""Bytes that a table of captions may have, and that those of a parquet file may come to."""
_HEAD = 2**16
"""Bytes of a file that are looked at for what it may be."""
_ENDING = re.compile(
    r"\.(csv|tsv|txt|jsonl?|ndjson|parquet|arrow|xlsx|ya?ml|xml|captions?|prompts?)(\.(gz|bz2|xz|zst|zip))?$"
)
_WORD = r"(?<![a-z])(captions?|prompts?|descriptions?|annotations?|sentences?|texts?)(?![a-z])"
_NAME = re.compile(rf"{_WORD}|(?<![a-z])metadata(?![a-z])")
_HEADER = re.compile(rf"\A[^\n]*{_WORD}".encode(), re.IGNORECASE)
_KEY = re.compile(rf'"{_WORD}"\s*:'.encode(), re.IGNORECASE)
_PROSE = re.compile(rb"[a-z]+ [a-z]+ [a-z]+", re.IGNORECASE)


def beside(name: str) -> list[str]:
    """Return where the caption of an image may lie; the key of a WebDataset sample ends at its first dot."""
    path = PurePosixPath(name)
    stems = dict.fromkeys((path.stem, path.name.partition(".")[0]))
    return [path.with_name(f"{stem}{ending}").as_posix() for ending in (".txt", ".json") for stem in stems]


def is_table(name: str) -> bool:
    """Tell a table of captions by its name."""
    return PurePosixPath(name).name in TABLES


def captions_of(source: Source, names: Sequence[str]) -> dict[str, list[str]]:
    """Return the captions that come with images of a source, by their names; several where its files differ.

    Raises DataError for a table or a caption that cannot be read.
    """
    wanted = _tables_of(names) | {each for name in names for each in beside(name)}
    contents = dict(_read(source, [name for name in source.files if name in wanted]))
    tables: dict[PurePosixPath, dict[str, list[str]]] = {}
    for name, content in contents.items():
        if is_table(name):
            table = tables.setdefault(PurePosixPath(name).parent, {})
            for _, file, captions in table_rows(source.where(name), content, _LARGEST):
                for key in map(composed, (file, _stem(file))):  # codecs change the ending
                    table.setdefault(key, []).extend(captions)
    found: dict[str, list[str]] = {}
    for name in names:
        captions = list(_listed(name, tables))
        for each in beside(name):
            captions += caption_beside(source.where(each), contents[each]) if each in contents else []
        found[name] = list(dict.fromkeys(caption for caption in map(str.strip, captions) if caption))
    return found


def first_named(source: Source, names: Sequence[str]) -> tuple[str, str, str] | None:
    """Return table, row and file name of the first caption in the tables of these images; None without one.

    Raises as `captions_of`.
    """
    wanted = _tables_of(names)
    for name, content in _read(source, [name for name in source.files if name in wanted]):
        where = source.where(name)
        for row, file, captions in table_rows(where, content, _LARGEST):
            if any(map(str.strip, captions)):
                return where, row, file
    return None


def _tables_of(names: Sequence[str]) -> set[str]:
    """Return where the tables of some images may lie: in their folders, or in those around them."""
    folders = {PurePosixPath(name).parent for name in names}
    around = {each for path in folders for each in (path, *path.parents)}
    return {(each / table).as_posix() for each in around for table in TABLES}


def like_captions(source: Source, names: Sequence[str], by_content: bool = True) -> Iterator[str]:
    """Yield the files of a source that look like captions of these images, by name or by what is in them."""
    images = {part.encode() for path in map(PurePosixPath, names) for part in (path.name, path.stem)}
    folders = {PurePosixPath(name).parent for name in names}
    doubtful = []
    for name in source.files:
        path = PurePosixPath(name)
        if _ENDING.search(path.name.lower()):
            told = path.name if path.parent in folders else name
            if _NAME.search(told.lower()) or (path.suffix == ".txt" and path.stem.encode() in images):
                yield name
            elif by_content:
                doubtful.append(name)
    yield from (name for name, content in _read(source, doubtful) if _tells(name, content, images))


def _tells(name: str, content: bytes, images: set[bytes]) -> bool:
    """Say whether a file has a column of captions, or prose after the name of an image."""
    head = content[:_HEAD]
    if b"\0" in head:  # binary tables name their columns at the end
        return bool(re.search(_WORD.encode(), head + content[-_HEAD:], re.IGNORECASE))
    if _KEY.search(head) or (name.lower().endswith((".csv", ".tsv")) and _HEADER.search(head)):
        return True
    after = ((word[0], head[word.end() : word.end() + 200]) for word in re.finditer(rb"[\w.-]+", head))
    return any(word in images and _PROSE.search(rest) for word, rest in after)


def _read(source: Source, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    with readable(source.path), source.open() as read:
        for name in source.in_reach(names, str):
            with readable(source.where(name), "file"):
                content = read(name)
            yield name, content


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0] + "."


def composed(name: str) -> str:
    """Return a name in one form: macOS writes a letter and its accent apart, tables together."""
    return unicodedata.normalize("NFC", name)


def _listed(name: str, tables: Mapping[PurePosixPath, Mapping[str, list[str]]]) -> list[str]:
    path = PurePosixPath(name)
    for folder in path.parents:
        table, inside = tables.get(folder, {}), composed(path.relative_to(folder).as_posix())
        if found := table.get(inside) or table.get(_stem(inside)):
            return found
    return []


def caption_beside(where: str, content: bytes) -> list[str]:
    """Return the captions in a file beside an image, by its ending. Raises DataError."""
    with readable(where, "caption"):
        text = content.decode("utf-8-sig")
        entry = json.loads(text) if where.endswith(".json") else text
    entry = entry if isinstance(entry, dict) else {"text": entry}
    return [entry[key] for key in CAPTION_KEYS if isinstance(entry.get(key), str)]


# --- tables ---


def table_rows(where: str, content: bytes, most: int) -> Iterator[tuple[str, str, list[str]]]:
    """Yield of each row of a table its place, the file that it names, and its captions, `text` first.

    Columns may be written in capitals. A list in the place of a caption is several, null and NaN are none. A
    row without such a column names no file. Raises DataError for damage, and for more than `most` bytes.
    """

    def fault(message: str, key: str | None = None, found: object = None) -> DataError:
        remedy = "Write it with the columns file_name and text, caption or prompt, or match in another way"
        return DataError(message, file=where, key=key, found=found, remedy=remedy)

    if len(content) > most:
        raise fault(f"a table of captions has at most {most:,} bytes", found=len(content))
    readers: dict[str, Callable[[bytes], Iterator[tuple[str, dict[Any, Any]]]]] = {
        ".csv": _csv,
        ".jsonl": _jsonl,
        ".parquet": partial(_parquet, most=most),
    }
    with readable(where, "table of captions"):
        for key, row in readers[PurePosixPath(where).suffix](content):
            columns = list(map(_column, row))
            if twice := [name for name in _COLUMNS if columns.count(name) > 1]:
                raise fault("two columns have one name", key, twice[0])
            row = dict(zip(columns, row.values(), strict=True))
            if not (told := [column for column in CAPTION_KEYS if column in row]):
                yield key, "", []
                continue
            files = [row["file_name"]] if "file_name" in row else [row[each] for each in _named(row)]
            if len(files) != 1 or not isinstance(files[0], str) or not files[0].strip():
                raise fault("this row does not name its image in file_name", key, sorted(row))
            file = posixpath.normpath(files[0].strip().replace("\\", "/"))
            texts = list[str]()
            for column in told:
                value = row[column]
                here = value if isinstance(value, list) else [value]
                here = [each for each in here if each is not None and each == each]  # NaN is pandas' None
                if not all(isinstance(each, str) for each in here):
                    raise fault("this caption is no text", f"{key}, {column}", value)
                texts += here
            yield key, file, texts


def _column(name: str) -> str:
    """Return the name of a column as we know it; others stay as they are."""
    name = name.strip()
    return name.lower() if name.lower() in _COLUMNS else name


def _named(row: Iterable[str]) -> list[str]:
    return [column for column in row if column.endswith("_file_name")]


def _csv(content: bytes) -> Iterator[tuple[str, dict[Any, Any]]]:
    rows = csv_rows(content, loose=True)
    _, header = next(rows, (0, []))
    for line, fields in rows:
        if any(map(str.strip, fields[len(header) :])):
            raise ValueError(f"line {line} has too many fields: a text with a comma needs quotes")
        # A row may end early, and with empty fields.
        yield f"line {line}", dict(zip(header, fields, strict=False))


def _jsonl(content: bytes) -> Iterator[tuple[str, dict[Any, Any]]]:
    # JSON strings may hold the other line breaks that splitlines knows.
    for number, line in enumerate(content.decode("utf-8-sig").split("\n"), 1):
        if line.strip():
            try:
                row = json_mapping(line)
            except ValueError as error:
                raise DataError(f"this line is no JSON object: {error}", key=f"line {number}") from None
            yield f"line {number}", row


def _parquet(content: bytes, most: int) -> Iterator[tuple[str, dict[Any, Any]]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise ValueError("parquet needs pyarrow: pip install pyarrow") from None
    schema = parquet.read_schema(io.BytesIO(content))
    wanted = (*_COLUMNS, *_named(schema.names))
    columns = [name for name in schema.names if _column(name) in wanted]
    # Equal texts stay one, and only the columns of text are unpacked: pictures may lie in the others.
    texts = [name for name in columns if "string" in str(schema.field(name).type)[:12]]
    file, total = parquet.ParquetFile(io.BytesIO(content), read_dictionary=texts), 0
    rows = 0
    for batch in file.iter_batches(batch_size=1024, columns=columns):
        for number in range(batch.num_rows):
            row = {name: batch.column(name)[number].as_py() for name in columns}
            for value in row.values():
                total += sum(len(str(each)) for each in (value if isinstance(value, list) else [value]))
            if total > most:
                raise ValueError(f"its captions come to more than {most:,} bytes")
            rows += 1
            yield f"row {rows}", row
