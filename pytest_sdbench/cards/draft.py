"""Write the card of one's own checkpoint: what can be counted is filled in, the rest is said in comments."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_sdbench.base.errors import CardError, CheckpointError, Unavailable
from pytest_sdbench.base.files import json_mapping
from pytest_sdbench.base.paths import real, reference, shown
from pytest_sdbench.cards.card import read_card, read_card_text
from pytest_sdbench.cards.edit import scalar
from pytest_sdbench.cards.front_matter import EMPTY_BLOCK, FrontMatter, find_block, parse, read_text
from pytest_sdbench.cards.schema import COMPONENTS
from pytest_sdbench.models.architectures import ARCHITECTURES
from pytest_sdbench.models.checkpoint import Checkpoint, as_base, resolve
from pytest_sdbench.models.hub import HUB_ID
from pytest_sdbench.models.integrity import check_together
from pytest_sdbench.models.layout import holds_unet, lora_file, no_checkpoint
from pytest_sdbench.models.lora_layers import lora_layers
from pytest_sdbench.models.specs import is_spec
from pytest_sdbench.protocols.load import load_protocol

_EXAMPLE = """# model-index:          # the published figures, in the hub's own form: fill in and uncomment
# - name: {title}
#   results:
#   - task: {{type: text-to-image}}
#     dataset: {{type: coco-2014, name: MS-COCO 2014 val 30K, config: coco30k-bksdm}}  # config: the protocol
#     metrics:
#     - {{type: fid, name: FID, value: 0.0}}
#     source: {{name: ..., url: "https://..."}}"""
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


_ALONE = {"unet": "a U-Net", "lora": "a LoRA"}
"""What a folder may hold that is no whole checkpoint."""


def draft(folder: str | Path, out: str | Path | None = None) -> str:
    """Return the text of a card for a checkpoint in diffusers layout; no weights are loaded.

    A folder of a U-Net or a LoRA alone stands on what the ``base_model`` of its README.md names. A README.md
    keeps its front matter and its body, and gains the ``sdbench`` block. `out` is where the card will lie,
    and tells the way to the checkpoint (default: README.md in the folder itself).
    Raises CheckpointError if the folder is no checkpoint, or stands on one that nothing names or that it does
    not fit; Unavailable if that is not on this machine; and CardError if its README.md has an ``sdbench``
    block already, or if the card with one could not be read or would not say all that it says now.
    """
    folder = real(folder)
    readme = folder / "README.md"
    text = read_text(readme).removeprefix("\ufeff") if readme.is_file() else ""
    front = parse(readme, text) if find_block(text) else None
    if front is not None and "sdbench" in front.data:
        remedy = f"Run it: pytest --sdbench {readme}"
        raise CardError("the checkpoint has a card already", file=readme, key="sdbench", remedy=remedy)
    name = folder.name
    # What the checkpoint says that it was built from.
    stated = front.data.get("base_model") if front is not None else None
    origins = stated if isinstance(stated, list) else [stated]
    # A README.md of the hub's cache is a link: the card lies where the folder does.
    home = folder if out is None else real(out).parent
    checkpoint, place = _located(folder, origins, home)
    base = base_card(*origins, checkpoint.config("unet").get("_name_or_path"))
    block = sdbench_block(checkpoint, place=place, shown=shown(out or readme), base=base)
    if front is None:
        example = _EXAMPLE.format(title=scalar(name))
        block = f"library_name: diffusers\npipeline_tag: text-to-image\n{example}\n{block}"
        # An indented first line is code: only empty ones are left out.
        text = re.sub(r"\A(?:[ \t]*(?:\r\n|\r|\n))+", "", EMPTY_BLOCK.sub("", text))
    return _joined(readme, front, block, text or _BODY.format(title=name), home)


def _located(folder: Path, origins: list[Any], home: Path) -> tuple[Checkpoint, str | dict[str, str]]:
    """Return the checkpoint in a folder, and how a card in `home` names it."""
    place = _way(folder, home)
    if (folder / "model_index.json").is_file():
        return resolve(str(folder)), place
    kind = "unet" if holds_unet(folder) else "lora"
    lora = lora_file(folder) if kind == "lora" and folder.is_dir() else None
    if kind == "lora" and lora is None:
        raise no_checkpoint(folder)
    if len(origins) != 1 or not isinstance(base := origins[0], str) or not is_spec(base):
        message = f"this is {_ALONE[kind]} alone, and nothing says which checkpoint it stands on"
        remedy = (
            "Write `base_model: org/name`, or the way to a folder, into the front matter of its README.md"
        )
        found = origins if origins != [None] else "none"
        raise CheckpointError(
            message, file=folder / "README.md", key="base_model", found=found, remedy=remedy
        )
    # A LoRA leaves the sizes of its base as they are, and need not be fused for them.
    spec = base if kind == "lora" else {"base": base, kind: str(folder)}
    try:
        checkpoint = resolve(spec, card=folder.name, near=folder)
    except (CheckpointError, Unavailable) as error:
        if "--sdbench" not in (error.remedy or ""):
            raise
        # The options of a run, which this command has not.
        raise type(error)(
            error.message,
            file=folder / "README.md",
            key="base_model",
            found=error.found or base,
            remedy=_to_get(base),
        ) from error
    if lora is not None:
        lora_layers(lora, as_base(checkpoint, lora))
    configs = {name: checkpoint.config(name) for name in checkpoint.pipeline.components}
    check_together(configs, checkpoint.folder)
    return checkpoint, {"base": _way(folder / base, home) if base.startswith(".") else base, kind: place}


def _to_get(base: str) -> str:
    """Say how to get the checkpoint that a README.md names."""
    match, written = re.fullmatch(HUB_ID, base), "write the way to a folder as `base_model`"
    if match is None:
        return f"Put the checkpoint there, or {written}"
    revision = f" --revision {match['revision']}" if match["revision"] else ""
    return f"Fetch it: hf download {match['name']}{revision}. Or {written}"


def _way(folder: Path, home: Path) -> str:
    """Return the way from the folder of a card to another one, as a card has it."""
    way = Path(os.path.relpath(folder, home)).as_posix()
    return "./" if way == "." else way if way.startswith("..") else f"./{way}"


def _joined(readme: Path, front: FrontMatter | None, block: str, text: str, home: Path) -> str:
    """Return a card's text with the block in it, read again; without front matter `text` is its body."""
    ending = re.search(r"\r\n|\r|\n", text)
    newline, kept = ending.group() if ending else "\n", ""
    body = newline + text
    if front is not None:
        kept, body, node = text[front.start : front.end], front.body, front.node
        if node is not None and not front.data:  # `{}`
            kept = kept[: node.start_mark.index] + kept[node.end_mark.index :]
        elif node is not None:
            block = textwrap.indent(block, " " * node.start_mark.column)
    block = block.replace("\n", newline)
    # Below what is there, unless that ends in a text which a further line would make longer.
    for lines in ([kept, block], [block, kept]) if kept.strip() else ([block],):
        new = newline.join(["---", *lines, "---", body])
        try:
            after = parse(readme, new)
        except CardError:
            continue
        said = {key: value for key, value in after.data.items() if key != "sdbench"}
        if after.body == body and (front is None or repr(said) == repr(front.data)):
            read_card_text(readme, new, search=(home,))
            return new
    message = "beside an `sdbench` block the front matter would not say all that it says now"
    raise CardError(message, file=readme, remedy="Write it as plain `key: value` lines, and run again")


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
    if isinstance(place, str):
        where = place if re.fullmatch(r"[\w./-]+", place, re.ASCII) else scalar(place)
        lines = [_line(f"checkpoint: {where}", "this folder; once pushed: org/name@revision")]
    else:
        joined = "this LoRA on its base" if "lora" in place else "this U-Net on the parts of its base"
        lines = [_line(f"checkpoint: {_value(place)}", joined)]
    named, mark = (scalar(base), "") if base is not None else ("CARD", "# ")
    measured = "measured even while nothing is claimed"
    if protocols is None:
        protocols = _fitting(checkpoint)
    if not protocols:
        measured = "none fits; your own: protocols/NAME.yaml beside the card"
    elif len(protocols) == 1:
        measured += f": {load_protocol(protocols[0]).n:,} images"
    return "\n".join(
        [
            f"sdbench:  # how to verify this card: pytest --sdbench {shown}",
            *lines,
            _line(f"{mark}base: {named}", "the card of the model it was built from"),
            _line(f"{mark}baseline: {named}", "the card it is compared with: speed ratio"),
            *_architecture(config),
            _line("size:", "counted; add `published` where a source prints a count"),
            *(f"    {name}: {{exact: {sizes[name]}}}" for name in COMPONENTS if name in sizes),
            _line(
                f"compute: {{unet_macs: {int(unet_macs(config).total)}}}",
                "one U-Net call at batch 1, attention included",
            ),
            _line("# speed: {unet_ratio: {max: 0.75}}", "the largest latency relative to the baseline's"),
            _line(f"protocols: [{', '.join(map(scalar, protocols))}]", measured),
            _line("# margins: {fid: 0.5}", "how much worse than claimed passes; default: the protocol's"),
            _line("records: []", "what this suite measured: --sdbench-update writes it"),
        ]
    )


def _line(text: str, comment: str) -> str:
    return f"  {text:<43} # {comment}"


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


def _fitting(checkpoint: Checkpoint) -> list[str]:
    """Return the packaged protocols of a checkpoint's vocabulary, size and scheduler."""
    from pytest_sdbench.models.checkpoint import scheduler_class

    names = ["coco30k-bksdm"] if checkpoint.unet_config.get("sample_size") == 64 else []
    if is_of_scenes(checkpoint):
        names = ["scenes-quick", "scenes-lcm4-quick"]
    own = scheduler_class(checkpoint)
    return [name for name in names if load_protocol(name).sampling.scheduler.must_be in (None, own)]


def is_of_scenes(checkpoint: Checkpoint) -> bool:
    """Say whether a checkpoint has the vocabulary of the embedded family."""
    scenes = _vocabulary(reference() / "checkpoints" / "scenes-sd" / "tokenizer")
    return bool(scenes) and _vocabulary(checkpoint.part("tokenizer")) == scenes


def _vocabulary(folder: Path) -> dict[str, Any]:
    """Return the tokens of a tokenizer's folder; transformers 5 writes them to tokenizer.json alone."""
    for name in ("vocab.json", "tokenizer.json"):
        if (folder / name).is_file():
            try:
                found = json_mapping((folder / name).read_bytes())
                return dict(found if name == "vocab.json" else found["model"]["vocab"])
            except (ValueError, KeyError, TypeError):
                return {}
    return {}


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
    specs = [_plain_spec(name) for name in names if _is_spec(name)]
    return next((known[spec] for spec in specs if spec in known), None)


def _is_spec(name: Any) -> bool:
    parts = name.values() if isinstance(name, Mapping) else [name]
    return all(isinstance(part, str) for part in parts)


def _plain_spec(spec: str | Mapping[str, str]) -> str:
    if isinstance(spec, str):
        return spec.partition("@")[0]
    return " + ".join(f"{key} {value.partition('@')[0]}" for key, value in sorted(spec.items()))
