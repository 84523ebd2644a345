"""Declare the options of a run, each with its ini twin."""

from __future__ import annotations

from typing import Any

import pytest


def option(config: pytest.Config, dest: str) -> Any:
    """Return an option's value: the command line wins over the ini file."""
    value = config.getoption(dest)
    return config.getini(dest) if value in (None, False, []) else value


def _store_true(text: str) -> dict[str, Any]:
    return {"action": "store_true", "default": False, "help": text}


def _value(metavar: str, text: str, **more: Any) -> dict[str, Any]:
    return {"metavar": metavar, "default": None, "help": text, **more}


def _at_least(flag: str, least: int, what: str) -> Any:
    def count(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise pytest.UsageError(
                f"{flag}: {text!r} is not {what}; give a whole number of at least {least}"
            )
        return int(text)

    return count


def _limit(text: str) -> str:
    if text not in ("auto", "all") and not text.isdecimal():
        raise pytest.UsageError(
            f"--sdbench-max-images: {text!r} is not a number of images; give a whole number, all or auto"
        )
    return text


_OPTIONS: tuple[tuple[str, Any, Any, dict[str, Any]], ...] = (
    (
        "--sdbench",
        "bool",
        False,
        _store_true("run model cards as tests; without a path, the cards of sdbench_cards"),
    ),
    (
        "--sdbench-weights",
        "linelist",
        [],
        {
            "action": "append",
            "metavar": "CARD=PATH",
            "default": [],
            "help": "judge PATH (a diffusers folder, or that of a U-Net alone) by the claims of CARD (its "
            "name or its path): this is how a release candidate is gated; may be repeated",
        },
    ),
    (
        "--sdbench-data",
        "string",
        None,
        _value(
            "DIR", "data root that holds mscoco_val2014_30k/, mscoco_val2014_41k_full/ and extractor weights"
        ),
    ),
    (
        "--sdbench-download",
        "bool",
        False,
        _store_true(
            "download weights that a card names and this machine lacks; nothing is downloaded otherwise"
        ),
    ),
    (
        "--sdbench-samples",
        "string",
        None,
        _value(
            "N",
            "make only the first N images of each protocol: a dry run, whose scores are not comparable",
            type=_at_least("--sdbench-samples", 1, "a number of images"),
        ),
    ),
    (
        "--sdbench-budget",
        "string",
        None,
        _value(
            "N",
            "look at growing numbers of images (256, 1,000, 2,000, 5,000, 10,000, 30,000), at most N, and "
            "stop as soon as the verdict is certain; a later run with a larger budget goes on from there",
            type=_at_least("--sdbench-budget", 256, "a budget of images"),
        ),
    ),
    (
        "--sdbench-inconclusive",
        "string",
        "fail",
        _value(
            "HOW",
            "what becomes of a test that cannot tell: fail (its failure in a junit file has the type "
            "inconclusive), or xfail, with which a run that has no other fault exits with status 6 [fail]",
            choices=("fail", "xfail"),
        ),
    ),
    (
        "--sdbench-calibrate",
        "string",
        None,
        _value(
            "K",
            "measure what each protocol's scores scatter by: K runs of the checkpoint with other seeds, each "
            "judged by the others; recorded in calibration/ beside the protocols",
            type=_at_least("--sdbench-calibrate", 2, "a number of runs"),
        ),
    ),
    (
        "--sdbench-max-images",
        "string",
        "auto",
        _value(
            "N|all",
            "skip a score that needs more new images than this, of one checkpoint under one protocol; auto: "
            "1,000 on a cpu unless images or runs are asked for (--sdbench-samples, -budget, -calibrate), no "
            "limit elsewhere [auto]",
            type=_limit,
        ),
    ),
    (
        "--sdbench-device",
        "string",
        "auto",
        _value("DEVICE", "auto (cuda, else mps, else cpu), or a torch device such as cuda:1 [auto]"),
    ),
    (
        "--sdbench-dtype",
        "string",
        "auto",
        _value(
            "DTYPE",
            "auto (the protocol's for quality; float16 on cuda and float32 elsewhere for speed), float32, "
            "float16 or bfloat16 [auto]",
            choices=("auto", "float32", "float16", "bfloat16"),
        ),
    ),
    (
        "--sdbench-store",
        "string",
        ".sdbench",
        _value("DIR|URL", "evidence store, folder or fsspec URL: images are never made twice [.sdbench]"),
    ),
    (
        "--sdbench-report",
        "linelist",
        [],
        {
            "action": "append",
            "metavar": "FILE",
            "default": [],
            "help": "write the results: .md for a GitHub table, .json for everything; may be repeated",
        },
    ),
    (
        "--sdbench-update",
        "bool",
        False,
        _store_true(
            "record what a finished run measured in each card's sdbench.records, and each image's part in "
            "evidence/; the run itself still fails"
        ),
    ),
)
