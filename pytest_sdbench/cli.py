"""The command line beside pytest: ``python -m pytest_sdbench COMMAND``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pytest_sdbench.arguments import parser, weights_by_card
from pytest_sdbench.base.errors import SdbenchError
from pytest_sdbench.base.paths import reference
from pytest_sdbench.cards.front_matter import is_card


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 1 something lacks, 2 an explained error."""
    options = parser().parse_args(arguments)
    try:
        return _COMMANDS[options.command](options)
    except SdbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _cards(named: Sequence[Path]) -> list[Path]:
    cards: list[Path] = []
    for path in named or [reference() / "cards"]:
        cards += sorted(file for file in path.glob("*.md") if is_card(file)) if path.is_dir() else [path]
    return cards


def _write(text: str, out: Path | None) -> None:
    if out is None:
        print(text, end="" if text.endswith("\n") else "\n")
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SdbenchError(
            "cannot be written", file=out, found=error.strerror, remedy="Name a file in a folder that exists"
        ) from None
    print(f"written to {out}", file=sys.stderr)


def _doctor(options: argparse.Namespace) -> int:
    from pytest_sdbench.doctor import examine, report

    findings = examine(_cards(options.cards), data_root=options.data)
    print(report(findings))
    return 0 if all(finding.found for finding in findings) else 1


def _plan(options: argparse.Namespace) -> int:
    from pytest_sdbench.base.environment import torch_device
    from pytest_sdbench.plan import figures, plan
    from pytest_sdbench.plan_report import report

    if options.images is not None and options.images < 1:
        raise SdbenchError("give 1 or more", key="--images", found=options.images)
    made = plan(
        _cards(options.cards),
        store=options.store,
        data_root=options.data,
        device=torch_device(options.device, option="--device"),
        dtype=options.dtype,
        images=options.images,
        protocols=options.protocol,
        weights=weights_by_card(options.weights),
        timing=not options.no_timing,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(report(made))
    if options.json is not None:
        _write(json.dumps(figures(made), indent=2) + "\n", options.json)
    return 0 if made.ready else 1


def _device(options: argparse.Namespace) -> int:
    from pytest_sdbench.base.environment import torch_device
    from pytest_sdbench.cards.card import read_card, write_records
    from pytest_sdbench.device import Measured, measure
    from pytest_sdbench.report.devices import device_tables

    for key, value in (("--largest-batch", options.largest_batch), ("--seconds", options.seconds)):
        if not value > 0:
            raise SdbenchError("give more than 0", key=key, found=value)
    cards = [read_card(path) for path in _cards(options.cards)]
    measuring = measure(
        cards,
        device=torch_device(options.device, option="--device"),
        dtypes=options.dtype,
        modes=options.mode,
        seconds=options.seconds,
        largest=options.largest_batch,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    found: list[Measured] = []
    problems: list[str] = []
    try:
        for each in measuring:  # a network takes minutes: what is measured is not lost with the next one
            found.append(each)
            problems += each.problems
            for card in each.cards if options.update else ():
                try:
                    print(write_records(card.path, each.records), end="")
                except SdbenchError as error:
                    problems.append(str(error))
    finally:
        print(device_tables([(each.names, each.records) for each in found]))
        for line in problems:
            print(line, file=sys.stderr)
    return 1 if problems else 0


def _draft(options: argparse.Namespace) -> int:
    from pytest_sdbench.cards.draft import draft

    if options.out is not None and options.out.exists():
        raise SdbenchError(
            "there is a file already, and a card is never overwritten",
            file=options.out,
            remedy="Name another --out",
        )
    _write(draft(options.folder, options.out), options.out)
    return 0


def _table(options: argparse.Namespace) -> int:
    from pytest_sdbench.cards.card import read_card
    from pytest_sdbench.report.devices import device_tables
    from pytest_sdbench.report.results import read_results
    from pytest_sdbench.report.tables import published_tables, results_markdown

    cards = [read_card(path) for path in _cards(options.cards)]
    text = published_tables(cards)
    if any(card.devices for card in cards):
        text += "\n" + device_tables([(card.title, card.devices) for card in cards])
    if options.results is not None:
        try:
            rows, _ = read_results(options.results.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SdbenchError(
                f"not the results of a run: {error}",
                file=options.results,
                key="--results",
                remedy="`pytest --sdbench --sdbench-report results.json` writes them",
            ) from None
        text += "\n" + results_markdown(cards, rows)
    _write(text, options.out)
    return 0


def _stats(options: argparse.Namespace) -> int:
    from pytest_sdbench.protocol import Resize
    from pytest_sdbench.statistics import make_statistics

    steps = [Resize(resize=options.resize, filter="pil-bicubic")] if options.resize else []
    source = _source(options.source)
    _check_layouts(options.layouts, source)
    made = make_statistics(
        source,
        options.out,
        extractor=options.extractor,
        steps=steps,
        layouts=options.layouts,
        keep=options.features,
        data_root=options.data,
        device=options.device,
        download=options.download,
    )
    print(f"written to {options.out}: {made.n:,} images, {len(made.mu)} features")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from pytest_sdbench.compare import compare, comparison_table, figures

    found = compare(
        options.first,
        options.second,
        options.protocol,
        images=options.images,
        store=options.store,
        data_root=options.data,
        device=options.device,
        download=options.download,
    )
    print(comparison_table(found))
    if options.json is not None:
        _write(json.dumps(figures(found), indent=2) + "\n", options.json)
    return 0


def _sample(options: argparse.Namespace) -> int:
    from pytest_sdbench.sampling import run

    return run(options, _cards(options.cards))


def _store(options: argparse.Namespace) -> int:
    return _store_ls(options) if options.action == "ls" else _store_gc(options)


def _store_ls(options: argparse.Namespace) -> int:
    from pytest_sdbench.storage import without_secrets
    from pytest_sdbench.store_cli import inventory, inventory_json, inventory_table

    found = inventory(options.store)
    if options.json:
        print(inventory_json(found))
    else:
        print(inventory_table(found) if found else f"no evidence in {without_secrets(options.store)}")
    return 0


def _store_gc(options: argparse.Namespace) -> int:
    from pytest_sdbench.base.text import readable
    from pytest_sdbench.storage import without_secrets
    from pytest_sdbench.store_cli import leftovers

    if options.older_than is not None and options.older_than <= 0:
        raise SdbenchError(
            "not a number of days", key="--older-than", found=options.older_than, remedy="Give more than 0"
        )
    size = 0
    for leftover in leftovers(options.store, older_than=options.older_than):
        if not options.dry_run:
            leftover.remove()
        print(f"{leftover.where}: {leftover.reason} ({readable(leftover.size)})")
        size += leftover.size
    done = "would be removed" if options.dry_run else "removed"
    print(f"{readable(size)} {done} from {without_secrets(options.store)}")
    return 0


def _score(options: argparse.Namespace) -> int:
    from pytest_sdbench.score import figures, score, score_table

    found = score(
        options.images,
        options.protocol,
        n=options.n,
        stage=options.stage,
        match_by=options.match,
        card=options.card,
        data_root=options.data,
        device=options.device,
        download=options.download,
    )
    print(score_table(found))
    if options.json is not None:
        _write(json.dumps(figures(found), indent=2) + "\n", options.json)
    return 0


def _check_layouts(layouts: Sequence[str], source: range | Sequence[str]) -> None:
    from pytest_sdbench.scenes import LAYOUTS

    if layouts and not isinstance(source, range):
        raise SdbenchError("layouts are those of scenes", key="--layouts", found=source[0])
    for name in layouts:
        if name not in LAYOUTS:
            raise SdbenchError(
                "no scene has this layout", key="--layouts", found=name, remedy=f"Give {', '.join(LAYOUTS)}"
            )


def _source(texts: Sequence[str]) -> range | Sequence[str]:
    """Read ``scenes:FIRST-LAST`` as a range that includes its last scene, anything else as sets of images."""
    scenes = next((text for text in texts if text.startswith("scenes:")), None)
    if scenes is None:
        return texts
    if len(texts) > 1:
        raise SdbenchError("a range of scenes stands alone", key="source", found=list(texts))
    first, dash, last = scenes.removeprefix("scenes:").partition("-")
    if not (dash and first.isdigit() and last.isdigit() and int(first) <= int(last)):
        raise SdbenchError(
            "not a range of scenes", key="source", found=scenes, remedy="Write scenes:20000000-20029999"
        )
    return range(int(first), int(last) + 1)


_COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "doctor": _doctor,
    "plan": _plan,
    "sample": _sample,
    "device": _device,
    "draft": _draft,
    "table": _table,
    "stats": _stats,
    "score": _score,
    "compare": _compare,
    "store": _store,
}
