"""Write small data sets for the tests of training data."""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.data.source import BadSample, Sample


def picture(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    """A smooth random picture: resizing and JPEG keep it nearly as it is."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "png") -> bytes:
    """The bytes of a picture's file."""
    buffer = io.BytesIO()
    image.save(buffer, form, **({"lossless": True} if form == "webp" else {}))
    return buffer.getvalue()


def write_folder(folder: Path, rows: Mapping[str, tuple[Image.Image | bytes, str]]) -> Path:
    """Write pictures and their metadata.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["file_name", "text"])
        for name, (image, caption) in rows.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(image if isinstance(image, bytes) else encoded(image))
            table.writerow([name, caption])
    return folder


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    """Write a tar file of these members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_shards(folder: Path, sizes: Sequence[int]) -> list[Path]:
    """Write shards of these sizes; pair n of all has the picture of seed n and the caption `red n`."""
    paths, number = [], 0
    for shard, size in enumerate(sizes):
        members = []
        for _ in range(size):
            members += [
                (f"{number:06}.png", encoded(picture(number))),
                (f"{number:06}.txt", f"red {number}".encode()),
            ]
            number += 1
        paths.append(write_tar(folder / f"shard-{shard:03}.tar", members))
    return paths


class ListSource:
    """A source of samples in memory; those that are text are corrupt, for that reason."""

    def __init__(self, samples: Sequence[Sample | str], name: str = "list") -> None:
        self.samples, self.name = list(samples), name
        self.reads = 0

    @property
    def group_sizes(self) -> Sequence[int]:
        return (len(self.samples),)

    @property
    def fingerprint(self) -> str:
        return f"{self.name} {len(self)}"

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, row: int) -> Sample:
        self.reads += 1
        sample = self.samples[row]
        if isinstance(sample, str):
            raise BadSample(f"row {row}", sample)
        return sample


def samples(count: int, size: int = 64, **bad: Any) -> list[Sample | str]:
    """Good samples; `bad` gives the reason of corrupt ones, as `row_3="broken"`."""
    made: list[Sample | str] = [
        Sample(f"row {row}", picture(row, size, size), f"red and blue {row}") for row in range(count)
    ]
    for name, reason in bad.items():
        made[int(name.removeprefix("row_"))] = reason
    return made
