"""Write the card of one's own checkpoint: what can be counted is filled in, the rest is said in comments."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_sdbench.base.errors import CardError, CheckpointError
from pytest_sdbench.base.paths import reference
from pytest_sdbench.cards.card import read_card
from pytest_sdbench.cards.edit import scalar
from pytest_sdbench.cards.front_matter import BLOCK, FrontMatter, parse, read_text
from pytest_sdbench.cards.schema import COMPONENTS
from pytest_sdbench.models.architectures import ARCHITECTURES
from pytest_sdbench.models.checkpoint import Checkpoint, resolve

_COLUMN = 46
_NO_PROTOCOL = "none fits; your own: protocols/NAME.yaml beside the card"
_EXAMPLE = """# model-index:          # the published figures, in the hub's own form: fill in and uncomment
# - name: {title}
#   results:
#   - task: {{type: text-to-image}}
#     dataset: {{type: coco-2014, name: MS-COCO 2014 val 30K, config: coco30k-bksdm}}  # config: the protocol
#     metrics:
#     - {{type: fid, name: FID, value: 0.0}}
#     source: {{name: ..., url: "https://..."}}"""


def draft(folder: str | Path, out: str | Path | None = None) -> str:
    """Return the text of a card for a checkpoint in diffusers layout; no weights are loaded.

    A README.md in the folder keeps its front matter and its body, and gains the ``sdbench`` block. `out` is
    where the card will lie, and tells the way to the checkpoint (default: README.md in the folder itself).
    Raises CheckpointError if the folder is no checkpoint, and CardError if its README.md has an ``sdbench``
    block already.
    """
    folder = Path(folder)
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(
            "the folder is no checkpoint in diffusers layout",
            file=folder,
            key="model_index.json",
            remedy="Name the folder that save_pretrained wrote, with unet, vae and text_encoder in it",
        )
    checkpoint = resolve(str(folder.resolve()))
    readme = folder / "README.md"
    text = read_text(readme) if readme.is_file() else ""
    front = parse(readme, text) if BLOCK.match(text) else None
    if front is not None and "sdbench" in front.data:
        raise CardError(
            "the checkpoint has a card already",
            file=readme,
            key="sdbench",
            remedy=f"Run it: pytest --sdbench {readme}",
        )
    name = folder.resolve().name
    base = base_card(*_origins(checkpoint, front))
    block = sdbench_block(checkpoint, place=_place(folder, out), shown=_shown(out or readme), base=base)
    if front is not None:
        lines = block.replace("\n", front.newline)
        return text[: front.end] + front.newline + lines + text[front.end :]
    example = _EXAMPLE.format(title=scalar(name))
    head = f"---\nlibrary_name: diffusers\npipeline_tag: text-to-image\n{example}\n{block}\n---\n\n"
    return head + (text.lstrip() or _BODY.format(title=name))


_BODY = """# {title}

What it is, and what it was made from.

- Training data: unstated
- Hardware: unstated
- Batch: unstated
- Optimiser: unstated
- Steps: unstated
- Resolution: unstated
- Licence: unstated
"""


def sdbench_block(
    checkpoint: Checkpoint,
    *,
    place: str | Mapping[str, str],
    shown: str,
    base: str | None,
    protocols: Sequence[str] | None = None,
) -> str:
    """Return the ``sdbench`` block of a checkpoint, without the last line ending.

    `place` is how the card names the checkpoint, `shown` how a command line names the card, `base` the card
    of the model it was built from. Without `protocols` those that fit its vocabulary and size are named.
    """
    from pytest_sdbench.models.counts import component_sizes, unet_macs

    config, sizes = checkpoint.unet_config, component_sizes(checkpoint)
    lines = [f"sdbench:  # how to verify this card: pytest --sdbench {shown}"]
    if isinstance(place, str):
        where = place if re.fullmatch(r"[\w./-]+", place, re.ASCII) else scalar(place)
        lines.append(_line(f"checkpoint: {where}", "this folder; once pushed: org/name@revision"))
    else:
        lines.append(_line(f"checkpoint: {_value(place)}", "this U-Net on the parts of its base"))
    if base is not None:
        lines.append(_line(f"base: {scalar(base)}", "the card of the model it was built from"))
        lines.append(_line(f"baseline: {scalar(base)}", "the card it is compared with: speed ratio"))
    else:
        lines.append(_line("# base: CARD", "the card of the model it was built from, by name"))
        lines.append(_line("# baseline: CARD", "the card it is compared with: speed ratio"))
    lines += _architecture(config)
    lines.append(_line("size:", "counted; add `published` where a source prints a count"))
    lines += [f"    {name}: {{exact: {sizes[name]}}}" for name in COMPONENTS if name in sizes]
    macs = unet_macs(config).total
    lines.append(
        _line(f"compute: {{unet_macs: {int(macs)}}}", "one U-Net call at batch 1, attention included")
    )
    lines.append(
        _line("# speed: {unet_ratio: {max: 0.75}}", "the largest latency relative to the baseline's")
    )
    if protocols is None:
        lines += _protocols(checkpoint, config)
    elif protocols:
        named = ", ".join(scalar(name) for name in protocols)
        lines.append(_line(f"protocols: [{named}]", "measured even while nothing is claimed"))
    else:
        lines.append(_line("protocols: []", _NO_PROTOCOL))
    lines.append(
        _line("# margins: {fid: 0.5}", "how much worse than claimed passes; default: the protocol's")
    )
    lines.append(_line("records: []", "what this suite measured: --sdbench-update writes it"))
    return "\n".join(lines)


def _line(text: str, comment: str) -> str:
    return f"  {text:<{_COLUMN - 3}} # {comment}"


def _architecture(config: Mapping[str, Any]) -> list[str]:
    """Return the architecture by name where it is a known one, else inline."""
    from pytest_sdbench.models.skeleton import architecture_key

    found = architecture_key(config)
    for name in ARCHITECTURES:
        if architecture_key(name) == found:
            return [_line(f"architecture: {name}", "its U-Net is this one, key by key")]
    # Diffusers' own defaults go without saying; a None that is not one of them does not.
    built, defaults = json.loads(found), json.loads(architecture_key({}))
    return [
        _line("architecture:", "the U-Net's configuration, in place of a name"),
        *(f"    {key}: {_value(value)}" for key, value in built.items() if value != defaults[key]),
    ]


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(key)}: {_value(item)}" for key, item in value.items()) + "}"
    return "null" if value is None else scalar(value)


def _protocols(checkpoint: Checkpoint, config: Mapping[str, Any]) -> list[str]:
    """Return the protocol that fits: by the vocabulary for scenes, by the latent size for MS-COCO."""
    if is_of_scenes(checkpoint):
        return [_line("protocols: [scenes-quick]", "measured even while nothing is claimed: 512 images")]
    if config.get("sample_size") == 64:
        comment = "measured even while nothing is claimed: 30,000 images; coco5k: 5,000"
        return [_line("protocols: [coco30k-bksdm]", comment)]
    return [_line("protocols: []", _NO_PROTOCOL)]


def is_of_scenes(checkpoint: Checkpoint) -> bool:
    """Say whether a checkpoint has the vocabulary of the embedded family."""
    vocabulary = checkpoint.part("tokenizer") / "vocab.json"
    scenes = reference() / "checkpoints" / "scenes-sd" / "tokenizer" / "vocab.json"
    return (
        vocabulary.is_file()
        and scenes.is_file()
        and vocabulary.read_bytes().strip() == scenes.read_bytes().strip()
    )


def _origins(checkpoint: Checkpoint, front: FrontMatter | None) -> list[Any]:
    """Return the names of the models that a checkpoint says it was built from."""
    stated = front.data.get("base_model") if front is not None else None
    listed = stated if isinstance(stated, list) else [stated]
    return [*listed, checkpoint.config("unet").get("_name_or_path")]


def base_card(*names: Any) -> str | None:
    """Return the packaged card of the first of these checkpoints that has one; revisions do not count.

    A checkpoint is named as in ``sdbench.checkpoint``; anything else is passed over.
    """
    known = {}
    for path in sorted((reference() / "cards").glob("*.md")):
        card = read_card(path)
        if card.checkpoint is not None:
            known[_plain_spec(card.checkpoint)] = card.name
    known["runwayml/stable-diffusion-v1-5"] = "stable-diffusion-v1-5"
    specs = [_plain_spec(name) for name in names if isinstance(name, str | Mapping)]
    return next((known[spec] for spec in specs if spec in known), None)


def _plain_spec(spec: str | Mapping[str, str]) -> str:
    if isinstance(spec, str):
        return spec.partition("@")[0]
    return " + ".join(f"{key} {value.partition('@')[0]}" for key, value in sorted(spec.items()))


def _place(folder: Path, out: str | Path | None) -> str:
    """Return the checkpoint's path as it is told from the card."""
    if out is None:
        return "./"
    place = Path(os.path.relpath(folder.resolve(), Path(out).resolve().parent)).as_posix()
    return "./" if place == "." else place if place.startswith("..") else f"./{place}"


def _shown(path: str | Path) -> str:
    try:
        return Path(path).resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return Path(path).name
