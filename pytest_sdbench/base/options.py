"""Declare what a run can be told, once for pytest, its ini file and the commands.

Every pytest run of an environment that has the package installed loads this module, so it imports nothing but
the standard library and our errors.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pytest_sdbench.base.errors import SdbenchError, quoted

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Option:
    """One option of a run."""

    flag: str
    help: str
    kind: Literal["switch", "text", "list"] = "text"
    default: str | None = None
    """Of a text, where neither the command line nor the ini file has one."""
    metavar: str | None = None
    bare: str | None = None
    """Of a text: what the option means without one."""
    check: Callable[[str], Any] = str
    """Turns a text into the value; raises ValueError that says what to give."""

    @property
    def dest(self) -> str:
        """Name of the attribute on the command line, and of the ini twin."""
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def ini(self) -> dict[str, Any]:
        """What `parser.addini` takes."""
        if self.kind == "switch":
            return {"type": "bool", "default": False}
        if self.kind == "list":
            return {"type": "linelist", "default": []}
        return {"type": "string", "default": self.default}

    def arguments(self, default: str | None = None) -> dict[str, Any]:
        """Return what `add_argument` takes; `default` is that of the command line."""
        if self.kind == "switch":
            return {"action": "store_true", "default": False, "help": self.help}
        told: dict[str, Any] = {"metavar": self.metavar, "type": self.read}
        if self.kind == "list":
            return told | {"action": "append", "default": [], "help": f"{self.help}; may be repeated"}
        shown = "" if self.default is None else f" [{'%(default)s' if default else self.default}]"
        told |= {"nargs": "?", "const": self.bare} if self.bare is not None else {}
        return told | {"default": default, "help": self.help + shown}

    def read(self, text: str) -> Any:
        """Return the value of a text; raises ArgumentTypeError that says what was found and what to give."""
        try:
            return self.check(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"found {quoted(text)}; {error}") from None


def weights_by_card(pairs: Iterable[tuple[str, str]]) -> dict[str, Path]:
    """Return the checkpoint of each card; raises SdbenchError for a card that is given twice."""
    weights: dict[str, Path] = {}
    for card, folder in pairs:
        if card in weights:
            raise SdbenchError(f"{card} is given twice", remedy="One run judges one checkpoint a card")
        weights[card] = Path(folder)
    return weights


def _at_least(least: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        if not text.strip().isdecimal() or int(text) < least:
            raise ValueError(f"give a whole number of at least {least}")
        return int(text)

    return count


def _one_of(*words: str) -> Callable[[str], str]:
    def word(text: str) -> str:
        if text not in words:
            raise ValueError(f"give one of {', '.join(words)}")
        return text

    return word


def _most_images(text: str) -> int | str:
    if text in ("auto", "all"):
        return text
    if not text.isdecimal():
        raise ValueError("give a whole number, all or auto")
    return int(text)


def _kept_images(text: str) -> int | str:
    if text in ("auto", "all"):
        return text
    if text != "none" and not text.isdecimal():
        raise ValueError("give a whole number, all, none or auto")
    return 0 if text == "none" else int(text)


def _card_and_path(text: str) -> tuple[str, str]:
    ends = [place for place, sign in enumerate(text) if sign == "="]
    # Names of sweeps have one, too (lr=1e-4): what is there behind it tells which is meant.
    end = next(
        (end for end in ends if os.path.exists(os.path.expanduser(text[end + 1 :]))), min(ends, default=0)
    )
    card, path = text[:end], text[end + 1 :]
    if not (card and path):
        raise ValueError("give CARD=PATH, such as bk-sdm-small=./my-model")
    return card, path


_DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "npu", "mtia", "xla", "privateuseone")
"""Kinds of devices that torch knows, with those of its extensions."""


def _device(text: str) -> str:
    if text != "auto" and not re.fullmatch(rf"({'|'.join(_DEVICES)})(:[0-9]+)?", text):
        raise ValueError(f"give auto, or {', '.join(_DEVICES)}, alone or with a number: cuda:1")
    return text


def _report(text: str) -> str:
    if Path(text).suffix not in (".html", ".md", ".json"):
        raise ValueError("give a name that ends in .html (a page), .md (a table) or .json (everything)")
    return text


def _address(text: str) -> str:
    if not text or text.lower().endswith(".md") or os.path.exists(text):
        raise ValueError("give the address of a cluster, auto, local or nothing, and cards before the option")
    return text


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not (0 < share <= 1 or (share > 1 and share.is_integer())):
        raise ValueError("give a share of a GPU such as 0.25, or a whole number of GPUs")
    return share


def _named(text: str) -> str:
    if not text:
        raise ValueError("give a folder or a URL, or leave the option out")
    return text


OPTIONS = {
    option.flag: option
    for option in (
        Option("--sdbench", "run model cards as tests; without a path, the cards of sdbench_cards", "switch"),
        Option(
            "--sdbench-weights",
            "take PATH (a diffusers folder, a U-Net alone, a LoRA or a single file) in place of the "
            "checkpoint of CARD (a name or a path); so a release candidate is judged by the claims of a card",
            "list",
            metavar="CARD=PATH",
            check=_card_and_path,
        ),
        Option(
            "--sdbench-data",
            "data root that holds mscoco_val2014_30k/, mscoco_val2014_41k_full/ and extractor weights",
            metavar="DIR",
            check=_named,
        ),
        Option(
            "--sdbench-download",
            "download weights that this machine lacks; nothing is downloaded otherwise",
            "switch",
        ),
        Option(
            "--sdbench-samples",
            "make only the first N images of each protocol: a dry run, whose scores are not comparable",
            metavar="N",
            check=_at_least(1),
        ),
        Option(
            "--sdbench-budget",
            "look at growing numbers of images (256, 1,000, 2,000, 5,000, 10,000, 30,000), at most N, and "
            "stop as soon as the verdict is certain; a later run with a larger budget goes on from there",
            metavar="N",
            check=_at_least(256),
        ),
        Option(
            "--sdbench-inconclusive",
            "what becomes of a test that cannot tell: fail (its failure in a junit file has the type "
            "inconclusive), or xfail, with which a run that has no other fault exits with status 6",
            default="fail",
            metavar="HOW",
            check=_one_of("fail", "xfail"),
        ),
        Option(
            "--sdbench-calibrate",
            "measure what each protocol's scores scatter by: K runs of the checkpoint with other seeds, each "
            "judged by the others; recorded in calibration/ beside the protocols",
            metavar="K",
            check=_at_least(2),
        ),
        Option(
            "--sdbench-max-images",
            "skip a score that needs more new images than this, of one checkpoint under one protocol; auto: "
            "1,000 on a cpu unless images or runs are asked for (--sdbench-samples, -budget, -calibrate), no "
            "limit elsewhere",
            default="auto",
            metavar="N|all",
            check=_most_images,
        ),
        Option(
            "--sdbench-device",
            "auto (cuda, else mps, else cpu), or a torch device such as cuda:1",
            default="auto",
            metavar="DEVICE",
            check=_device,
        ),
        Option(
            "--sdbench-ray",
            "have the workers of a Ray cluster make the images: of the one at ADDRESS (auto: that of this "
            "machine), or, without an address, of this machine alone",
            metavar="ADDRESS",
            bare="local",
            check=_address,
        ),
        Option(
            "--sdbench-ray-gpus",
            "GPUs that a worker takes, or a share of one: several small models fit one GPU [1]",
            metavar="X",
            check=_share,
        ),
        Option(
            "--sdbench-ray-workers",
            "ask for N workers, even if the cluster has to grow for them; default: as many as have room",
            metavar="N",
            check=_at_least(1),
        ),
        Option(
            "--sdbench-ray-mixed",
            "let workers differ in device and library versions; they are refused otherwise",
            "switch",
        ),
        Option(
            "--sdbench-dtype",
            "auto (the protocol's for quality; float16 on cuda and float32 elsewhere for speed), float32, "
            "float16 or bfloat16",
            default="auto",
            metavar="DTYPE",
            check=_one_of("auto", *DTYPES),
        ),
        Option(
            "--sdbench-store",
            "evidence store, a folder or fsspec URL: images are never made twice",
            default=".sdbench",
            metavar="DIR|URL",
            check=_named,
        ),
        Option(
            "--sdbench-keep-images",
            "keep the pictures of the first N images of each draw in the store, and make those that lack; "
            "auto: 64, or as many as a claim of fidelity compares, where images are made anyway",
            default="auto",
            metavar="N|all|none",
            check=_kept_images,
        ),
        Option(
            "--sdbench-report",
            "write the results: .html for a page to pass on, .md for a GitHub table, .json for everything",
            "list",
            metavar="FILE",
            check=_report,
        ),
        Option(
            "--sdbench-history",
            "add an object with what this run measured to a folder or fsspec URL, for `python -m "
            "pytest_sdbench history`",
            metavar="DIR|URL",
            check=_named,
        ),
        Option(
            "--sdbench-github",
            "auto: in GitHub Actions the step has a summary, and what fell stands on the line of the card; "
            "off: neither",
            default="auto",
            metavar="HOW",
            check=_one_of("auto", "off"),
        ),
        Option(
            "--sdbench-update",
            "record what a finished run measured in each card's sdbench.records, and each image's part in "
            "evidence/; the run itself still fails",
            "switch",
        ),
    )
}
"""By flag."""
