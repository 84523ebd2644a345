"""Find out which prompt each image is of: wrong pairs would ruin a CLIP score without a word."""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pytest_sdbench.base.errors import DataError
from pytest_sdbench.features.captions import composed
from pytest_sdbench.features.images import ImageSet, check_around, read_captions

_OTHERWISE = "Remove it, or match in another way: --match caption, name, index or order"


@dataclass(frozen=True)
class Matching:
    """Which image is of which prompt."""

    order: tuple[int, ...]
    """The number of the image of each prompt, from prompt 0 on without a gap."""
    how: str
    """How they were matched, for people."""
    doubt: DataError | None = None
    """Why nobody knows which image is of which prompt: metrics that look at both then have no score."""


def match(
    images: ImageSet,
    prompts: Sequence[str],
    files: Sequence[str] = (),
    *,
    n: int,
    all_of_them: bool = False,
    by: str | None = None,
) -> Matching:
    """Match images with the first `n` prompts, or with as many of them as there are images.

    `prompts` are all that images may be of, `files` the file names that go with them, where there are such.
    With `all_of_them`, each of the `n` prompts needs its image, and images of later prompts are left out.
    `by` says how: caption, name, index or order; default: the first of these, but for order, that the images
    have. Without any, and where something looks like captions and gives none, images are of no known prompt;
    where it lies around their archive, names in the file of prompts count still, and mere numbers do not.

    Raises DataError, with the name of the file, for an image that no prompt belongs to, two images of one
    prompt, a prompt without an image, and a prompt beyond the first `n`.
    """
    found, forced, doubt = None, by is not None, None
    if by in (None, "caption"):
        try:
            captions = read_captions(images, outside=forced)
        except DataError as problem:
            if forced:
                raise
            doubt = problem
        else:
            found = _by_caption(images, captions, prompts, forced=forced)
    if (found, doubt) == (None, None) and by in (None, "name"):
        found = _by_name(images, files, forced=forced)
    if (found, doubt, by) == (None, None, None):
        try:
            check_around(images)
        except DataError as problem:
            doubt = problem
    if (found, doubt) == (None, None) and by in (None, "index"):
        found = _by_index(images, (n, len(prompts)), forced=forced)
    if not found and not doubt and not forced:
        message = "nothing says which prompt this image is of: no caption, no known name and no number"
        remedy = "Write metadata.csv with file_name and text; or, if images are in the order of the prompts "
        remedy += "when sorted by name: --match order"
        doubt = DataError(message, file=images.pictures[0].where, remedy=remedy)
    if doubt and len(images.pictures) > max(len(prompts), len(files)):
        message = (
            f"{len(images.pictures):,} images and {len(prompts):,} prompts, of which nothing says which "
        )
        message += f"belong together: {doubt.message}"
        raise DataError(message, file=doubt.file, key=doubt.key, found=doubt.found, remedy=doubt.remedy)
    indices, how = found or _by_order(images)
    checked = _checked(images, indices, max(len(prompts), len(files)), n, all_of_them)
    return Matching(checked, "in no way" if doubt else how, doubt)


def _checked(
    images: ImageSet, indices: Sequence[int], known: int, n: int, all_of_them: bool
) -> tuple[int, ...]:
    """Return the image of each prompt; raise for duplicates, gaps and what is beyond."""
    found: dict[int, int] = {}
    for number, index in enumerate(indices):
        where = images.pictures[number].where
        if index in found:
            other = images.pictures[found[index]].where
            message = f"two images are of prompt {index}. The other one is {other}"
            raise DataError(message, file=where, remedy=_OTHERWISE)
        if index >= known or (index >= n and not all_of_them):
            message = f"this image is of prompt {index}, but there are only {min(n, known):,}, counted from 0"
            remedy = "These are images of other prompts, or numbered in another way"
            if index < known:
                remedy = f"Score those of the first {n:,} alone: --images {n}"
            raise DataError(message, file=where, remedy=remedy)
        found[index] = number
    count = n if all_of_them else len(found)
    lacking = next((index for index in range(count) if index not in found), None)
    if lacking is not None:
        last = max(found)
        after = min((index for index in found if index > lacking), default=last)
        message = f"no image is of prompt {lacking}. This one of {len(found):,} images is of prompt {after}"
        remedy = f"Make it, or score the first ones alone: --images {lacking}"
        if lacking == 1:  # one picture has no score
            remedy = "Make it, and those behind it: images are of the first prompts, without a gap"
        if lacking == 0:
            remedy = "Images are of the first prompts, without a gap"
            if after == 1:
                remedy = f"If they are numbered from 1, say how many there are: --images {last}"
        remark = images.remark()  # the one that lacks may be there in another format
        remedy += f". {remark[:1].upper()}{remark[1:]}" if remark else ""
        raise DataError(message, file=images.pictures[found[after]].where, remedy=remedy)
    return tuple(found[index] for index in range(count))


def _by_caption(
    images: ImageSet, captions: Sequence[Sequence[str]], prompts: Sequence[str], *, forced: bool
) -> tuple[list[int], str] | None:
    if not forced and not any(captions):
        return None
    of_text: dict[str, deque[int]] = {}
    for index, prompt in enumerate(prompts):
        of_text.setdefault(plain_caption(prompt), deque()).append(index)
    indices = []
    others = ", while others have one" if any(captions) else ""
    for picture, texts in zip(images.pictures, captions, strict=True):
        if not texts:
            remedy = "Write it in metadata.csv or in a .txt beside it, or match otherwise: --match index"
            raise DataError(f"no caption comes with this image{others}", file=picture.where, remedy=remedy)
        known = {plain for plain in map(plain_caption, texts) if plain in of_text}
        if len(known) > 1:
            message, found = "several prompts of the protocol are captions of this image", sorted(known)
            raise DataError(message, file=picture.where, found=found[:2], remedy=_OTHERWISE)
        left = of_text[known.pop()] if known else None
        if not left:
            message = "more images have this caption than the protocol has prompts of it"
            if left is None:
                message = "the caption of this image is no prompt of the protocol"
            raise DataError(message, file=picture.where, found=texts[0][:80], remedy=_OTHERWISE)
        # Which of several equal prompts an image is of makes no difference to any pair.
        indices.append(left.popleft())
    return indices, "by the captions that come with them"


def _by_name(images: ImageSet, files: Sequence[str], *, forced: bool) -> tuple[list[int], str] | None:
    of_path = {_bare(file): index for index, file in enumerate(files)}
    of_stem: dict[str, list[int]] = {}
    for path, number in of_path.items():
        of_stem.setdefault(path.name, []).append(number)
    known = [_index_of(_bare(picture.name), of_path, of_stem) for picture in images.pictures]
    if not forced and sum(index is not None for index in known) * 2 <= len(known):
        return None
    indices = []
    for picture, index in zip(images.pictures, known, strict=True):
        if index is None:
            without = "file of prompts has no such file name" if files else "prompts have no file names"
            raise DataError(f"the protocol's {without}", file=picture.where, remedy=_OTHERWISE)
        indices.append(index)
    return indices, "by their names in the protocol's file of prompts"


def _bare(name: str) -> PurePosixPath:
    """Return a path without its ending, which codecs change."""
    return PurePosixPath(composed(name.replace("\\", "/"))).with_suffix("")


def _index_of(
    path: PurePosixPath, of_path: Mapping[PurePosixPath, int], of_stem: Mapping[str, Sequence[int]]
) -> int | None:
    """Return the prompt of a picture: by its name, among namesakes by its folders too."""
    named = of_stem.get(path.name, ())
    if len(named) < 2:
        return named[0] if named else None
    ends = (PurePosixPath(*path.parts[at:]) for at in range(len(path.parts)))
    return next((of_path[end] for end in ends if end in of_path), None)


def _by_index(images: ImageSet, ends_at: tuple[int, ...], *, forced: bool) -> tuple[list[int], str] | None:
    ends = [re.search(r"[0-9]+$", picture.stem) for picture in images.pictures]
    if not forced and sum(end is not None for end in ends) * 2 <= len(ends):
        return None
    indices = []
    for picture, end in zip(images.pictures, ends, strict=True):
        if end is None:
            others = ", while others do" if any(ends) else ""
            message = f"the name of this image ends in no number{others}"
            raise DataError(message, file=picture.where, remedy=_OTHERWISE)
        indices.append(int(end[0]))
    base = 1 if min(indices) == 1 and max(indices) in ends_at else 0
    example = images.pictures[indices.index(min(indices))].stem
    counted = f"taken as counted from {base}: {example} is of prompt {min(indices) - base}"
    return [index - base for index in indices], f"by the numbers at the end of their names, {counted}"


def _by_order(images: ImageSet) -> tuple[list[int], str]:
    first, last, count = images.pictures[0].stem, images.pictures[-1].stem, len(images.pictures)
    return list(range(count)), f"by the order of their names: {first} is of prompt 0, {last} of {count - 1}"


def plain_caption(text: str) -> str:
    """Return a caption with single spaces, and accents in one form, as captions are compared."""
    return " ".join(unicodedata.normalize("NFC", text).split())
