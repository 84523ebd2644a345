"""Keep the pictures of a draw beside its rows, and read them back."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator

from pytest_sdbench.base.errors import EvidenceError, PictureLoss
from pytest_sdbench.base.files import FULL
from pytest_sdbench.store.folders import Stamp
from pytest_sdbench.store.pictures import (
    BEGINNING,
    Pictures,
    format_pictures,
    parse_header,
    parse_pictures,
    pictures_name,
    pictures_names,
)
from pytest_sdbench.store.shard_folder import ShardFolder, check_owner, say
from pytest_sdbench.store.shard_format import SHARD, Damage


class PicturesLost(UserWarning):
    """Pictures that could not be kept, of images whose rows are."""


def are_kept(images: range, files: Container[str]) -> bool:
    """Return whether the pictures of some images of one shard are among these files."""
    return bool(pictures_names(_from_border(images), files))


def put_with_pictures(
    folder: ShardFolder, pictures: Pictures | None, writer: str, put: Callable[[], None], *, insists: bool
) -> None:
    """Write the pictures of one shard, if there are any, and then, with `put`, its rows: these in any case.

    Where rows find the disk full, pictures make room for them: these, and of a by-product all that this
    process has added. Pictures that cannot be kept are an EvidenceError where they are insisted upon, else a
    warning; rows that cannot are what `put` raises.
    """
    name, spare = "", list[str]() if insists else folder.spare
    lost: EvidenceError | None = None
    if pictures is not None:
        drawn = pictures.images, pictures.indices, pictures.seeds, pictures.prompts
        name = pictures_name(range(int(pictures.indices[0]), int(pictures.indices[-1]) + 1))
        new = name not in folder.last_listing().files
        try:
            folder.storage.write(name, format_pictures(*drawn, of=folder.of, writer=writer))
        except EvidenceError as error:
            lost = error
        else:
            spare += [name] if new else []
    try:
        put()
    except EvidenceError as error:
        if not spare or getattr(error.__cause__, "errno", None) not in FULL:
            raise
        name = spare[-1]
        while spare:
            folder.storage.remove(spare.pop())
        put()
        lost = error
    if lost is not None:
        what = lost.message.replace("evidence cannot", "pictures cannot")
        # Insisted upon, they were asked for by that option, or the command needs them.
        fewer = "" if insists else "Or keep fewer pictures: --sdbench-keep-images N|none"
        remedy = ". ".join(filter(None, ("The rows are kept", (lost.remedy or "").rstrip("."), fewer)))
        found = EvidenceError(what, file=folder.storage.where(name), remedy=remedy)
        if insists:
            raise found from lost
        say(str(found), PicturesLost)


def holds_pictures(folder: ShardFolder, name: str) -> bool:
    """Return whether a file of pictures is there and sound; nothing is changed."""
    try:
        _parse(folder, name, folder.storage.read(name))
    except (FileNotFoundError, Damage):
        return False
    return True


def read_pictures(folder: ShardFolder, images: range) -> tuple[Pictures, str] | None:
    """Return the pictures of some images of one shard, and their writer; None where they are not kept.

    They are read, and checked, each time: damaged ones are set aside with a warning.
    """
    whole = _from_border(images)
    for name, stamp in _files_of(folder, whole):
        try:
            found, writer = _parse(folder, name, folder.read(name))
        except FileNotFoundError:
            continue
        except Damage as damage:
            folder.set_aside(name, stamp, damage)
            continue
        part = slice(images.start - whole.start, len(whole))
        drawn = found.indices[part], found.seeds[part], found.prompts[part], found.images[part]
        return Pictures(*drawn), writer
    return None


def artist_of(folder: ShardFolder, images: range) -> str:
    """Return who drew the kept pictures of some images of one shard, as the header of their file says.

    Their pixels are not read. Raises PictureLoss where they are not kept; a damaged header is set aside.
    """
    for name, stamp in _files_of(folder, _from_border(images)):
        try:
            about = parse_header(folder.read(name, BEGINNING))
            check_owner(about, folder.of)
        except FileNotFoundError:
            continue
        except Damage as damage:
            folder.set_aside(name, stamp, damage)
            continue
        return str(about.get("writer"))
    raise not_kept(folder, images)


def not_kept(folder: ShardFolder, images: range) -> PictureLoss:
    """Return the error of whoever needs pictures of one shard that are not kept."""
    what = f"the pictures of images {images.start} to {images.stop - 1} are not kept"
    return PictureLoss(what, file=folder.storage.root, remedy="Run again: they are drawn anew")


def _files_of(folder: ShardFolder, images: range) -> Iterator[tuple[str, Stamp]]:
    """Yield the files that hold some pictures from the border of a shard on."""
    for listing in folder.listings():
        yield from ((name, listing.files[name]) for name in pictures_names(images, listing.files))


def _parse(folder: ShardFolder, name: str, content: bytes) -> tuple[Pictures, str]:
    found, about = parse_pictures(content)
    check_owner(about, folder.of)
    if pictures_name(range(about["start"], about["stop"])) != name:
        raise Damage("its name is not that of its images")
    return found, str(about["writer"])


def _from_border(images: range) -> range:
    return range(images.start - images.start % SHARD, images.stop)
