"""The command line beside pytest: ``python -m pytest_sdbench COMMAND``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pytest_sdbench import __version__
from pytest_sdbench.errors import SdbenchError
from pytest_sdbench.front_matter import is_card
from pytest_sdbench.paths import reference
from pytest_sdbench.sampling import add_arguments
from pytest_sdbench.sampling import run as run_sampling


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 1 something lacks, 2 an explained error."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except SdbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pytest_sdbench",
        description="Model cards as tests: what surrounds `pytest --sdbench`.",
    )
    parser.add_argument("--version", action="version", version=f"pytest-sdbench {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    doctor = commands.add_parser(
        "doctor", help="say what this machine lacks for which card, and how to get it"
    )
    doctor.add_argument("cards", nargs="*", type=Path, metavar="CARD", help="default: the packaged cards")
    doctor.add_argument("--data", type=Path, metavar="DIR", help="data root, as --sdbench-data")
    doctor.set_defaults(run=_doctor)

    plan = commands.add_parser(
        "plan", help="say what a run will cost before it starts: images, time, disk, downloads"
    )
    plan.add_argument("cards", nargs="*", type=Path, metavar="CARD", help="default: the packaged cards")
    plan.add_argument("--store", default=".sdbench", metavar="DIR|URL", help="[%(default)s]")
    plan.add_argument("--data", type=Path, metavar="DIR", help="data root, as --sdbench-data")
    plan.add_argument("--device", default="auto", metavar="DEVICE", help="torch device [%(default)s]")
    plan.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="another precision than the protocol's"
    )
    plan.add_argument("--images", type=int, metavar="N", help="the first N images of each protocol alone")
    plan.add_argument(
        "--protocol",
        action="append",
        default=[],
        metavar="NAME",
        help="plan for this protocol, in place of those that the cards are judged by; may be repeated",
    )
    plan.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="CARD=PATH",
        help="another checkpoint than the card's, as --sdbench-weights; may be repeated",
    )
    plan.add_argument(
        "--no-timing", action="store_true", help="time no network: only what the store knows of times"
    )
    plan.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    plan.set_defaults(run=_plan)

    device = commands.add_parser(
        "device",
        help="measure what a U-Net call of the cards' networks takes on this device: latency, throughput, "
        "multiply-accumulates a second, peak memory",
    )
    device.add_argument("cards", nargs="*", type=Path, metavar="CARD", help="default: the packaged cards")
    device.add_argument("--device", default="auto", metavar="DEVICE", help="torch device [%(default)s]")
    device.add_argument(
        "--dtype",
        action="append",
        default=[],
        choices=("float32", "float16", "bfloat16"),
        help="may be repeated; default: float16 and bfloat16, on a CPU float32",
    )
    device.add_argument(
        "--mode",
        action="append",
        default=[],
        choices=("eager", "compiled"),
        help="may be repeated; default: both on CUDA, elsewhere eager",
    )
    device.add_argument(
        "--largest-batch",
        type=int,
        default=64,
        metavar="N",
        help="that is tried for throughput [%(default)s]",
    )
    device.add_argument(
        "--seconds", type=float, default=3.0, metavar="S", help="of timing for each figure [%(default)s]"
    )
    device.add_argument("--update", action="store_true", help="record the figures in the cards")
    device.set_defaults(run=_device)

    draft = commands.add_parser("draft", help="write the card of a checkpoint")
    draft.add_argument("folder", type=Path, metavar="FOLDER", help="a checkpoint in diffusers layout")
    draft.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="where to write it; default: the terminal"
    )
    draft.set_defaults(run=_draft)

    table = commands.add_parser("table", help="write the result tables as GitHub markdown")
    table.add_argument("cards", nargs="*", type=Path, metavar="CARD", help="default: the packaged cards")
    table.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="a results.json: show what was measured beside what is claimed",
    )
    table.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="where to write it; default: the terminal"
    )
    table.set_defaults(run=_table)

    stats = commands.add_parser(
        "stats", help="compute reference statistics of images, as an npz of mu and sigma"
    )
    stats.add_argument(
        "source",
        nargs="+",
        metavar="SOURCE",
        help="a folder or archive (.zip, .tar) of images, shards (data-{000..012}.tar), or a range of "
        "embedded scenes (scenes:FIRST-LAST)",
    )
    stats.add_argument("-o", "--out", type=Path, metavar="FILE.npz", required=True, help="where to write it")
    stats.add_argument(
        "--extractor",
        default="inception-pytorch-fid",
        metavar="NAME",
        help="inception-pytorch-fid, inception-torch-fidelity or scenes-classifier [%(default)s]",
    )
    stats.add_argument(
        "--resize",
        type=int,
        metavar="PIXELS",
        help="squash every image to a square first (Pillow, bicubic); the COCO statistics are of 256",
    )
    stats.add_argument(
        "--features", type=int, default=0, metavar="N", help="keep the features of N images, for KID [0]"
    )
    stats.add_argument(
        "--layouts",
        nargs="+",
        default=[],
        metavar="NAME",
        help="of a range of scenes, those of these layouts",
    )
    stats.add_argument("--data", type=Path, metavar="DIR", help="data root, as --sdbench-data")
    stats.add_argument("--device", default="cpu", metavar="DEVICE", help="torch device [%(default)s]")
    stats.add_argument(
        "--download", action="store_true", help="fetch the extractor's weights if they are missing"
    )
    stats.set_defaults(run=_stats)

    score = commands.add_parser("score", help="score images that another tool made, under a protocol")
    score.add_argument(
        "images",
        nargs="+",
        metavar="IMAGES",
        help="a folder or archive (.zip, .tar) of images, or shards (data-{000..012}.tar)",
    )
    score.add_argument("--protocol", required=True, metavar="NAME", help="a protocol's name or file")
    score.add_argument("--images", type=int, dest="n", metavar="N", help="those of the first N prompts alone")
    score.add_argument(
        "--stage",
        choices=("sampled", "final"),
        help="whether the images are as the sampler made them, or have been through the protocol's codec and "
        "resize already; default: told from their size",
    )
    score.add_argument(
        "--match",
        choices=("caption", "name", "index", "order"),
        help="how the prompt of an image is found: by the caption that comes with it, by its name in the "
        "file of prompts, by the number at the end of its name, or by the order of names; default: the first "
        "of these that the images have",
    )
    score.add_argument("--card", metavar="CARD", help="show what this card (name or file) claims beside it")
    score.add_argument("--data", type=Path, metavar="DIR", help="data root, as --sdbench-data")
    score.add_argument("--device", default="cpu", metavar="DEVICE", help="torch device [%(default)s]")
    score.add_argument("--download", action="store_true", help="fetch weights that are missing")
    score.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    score.set_defaults(run=_score)

    compare = commands.add_parser(
        "compare",
        help="score two checkpoints on the same prompts and seeds, and say how sure the difference is",
    )
    what = "a card (name or file), a folder in diffusers layout, or embedded:NAME"
    compare.add_argument("first", metavar="A", help=what)
    compare.add_argument("second", metavar="B", help=f"{what}; a U-Net's folder alone is joined to B's base")
    compare.add_argument("--protocol", required=True, metavar="NAME", help="a protocol's name or file")
    compare.add_argument("--images", type=int, metavar="N", help="the first N images alone")
    compare.add_argument("--store", default=".sdbench", metavar="DIR|URL", help="[%(default)s]")
    compare.add_argument("--data", type=Path, metavar="DIR", help="data root, as --sdbench-data")
    compare.add_argument("--device", default="cpu", metavar="DEVICE", help="torch device [%(default)s]")
    compare.add_argument("--download", action="store_true", help="fetch weights that are missing")
    compare.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    compare.set_defaults(run=_compare)
    sampling = commands.add_parser(
        "sample", help="make the images of cards, as one of any number of processes that share a store"
    )
    add_arguments(sampling)
    sampling.set_defaults(run=lambda options: run_sampling(options, _cards(options.cards)))

    store = commands.add_parser("store", help="look into an evidence store, or clean it up")
    actions = store.add_subparsers(title="actions", required=True, metavar="ACTION")
    ls = actions.add_parser("ls", help="list what it holds of which checkpoint and draw")
    ls.add_argument("--json", action="store_true", help="as JSON, sizes in bytes")
    ls.set_defaults(run=_store_ls)
    gc = actions.add_parser(
        "gc",
        help="remove what nothing needs: damaged and unfinished files, leases that nobody renews, shards "
        "that a longer one covers",
    )
    gc.add_argument(
        "--older-than",
        type=float,
        metavar="DAYS",
        help="and evidence that was not written to for so long",
    )
    gc.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    gc.set_defaults(run=_store_gc)
    for action in (ls, gc):
        action.add_argument("--store", default=".sdbench", metavar="DIR|URL", help="[%(default)s]")
    return parser


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
    from pytest_sdbench.environment import torch_device
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
        weights=_weights(options.weights),
        timing=not options.no_timing,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(report(made))
    if options.json is not None:
        _write(json.dumps(figures(made), indent=2) + "\n", options.json)
    return 0 if made.ready else 1


def _weights(pairs: Sequence[str]) -> dict[str, Path]:
    weights = {}
    for pair in pairs:
        card, _, folder = pair.partition("=")
        if not (card and folder):
            raise SdbenchError(
                "not a card and a checkpoint", key="--weights", found=pair, remedy="Give CARD=PATH"
            )
        weights[card] = Path(folder)
    return weights


def _device(options: argparse.Namespace) -> int:
    from pytest_sdbench.card import read_card, write_records
    from pytest_sdbench.device import measure
    from pytest_sdbench.environment import torch_device
    from pytest_sdbench.report.devices import device_tables

    for key, value in (("--largest-batch", options.largest_batch), ("--seconds", options.seconds)):
        if not value > 0:
            raise SdbenchError("give more than 0", key=key, found=value)
    cards = [read_card(path) for path in _cards(options.cards)]
    found = measure(
        cards,
        device=torch_device(options.device, option="--device"),
        dtypes=options.dtype,
        modes=options.mode,
        seconds=options.seconds,
        largest=options.largest_batch,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(device_tables([(", ".join(each.cards), each.records) for each in found]))
    problems = [line for each in found for line in each.problems]
    for line in problems:
        print(line, file=sys.stderr)
    if options.update:
        for each in found:
            for card in cards:
                if card.name in each.cards:
                    print(write_records(card.path, each.records), end="")
    return 1 if problems else 0


def _draft(options: argparse.Namespace) -> int:
    from pytest_sdbench.draft import draft

    if options.out is not None and options.out.exists():
        raise SdbenchError(
            "there is a file already, and a card is never overwritten",
            file=options.out,
            remedy="Name another --out",
        )
    _write(draft(options.folder, options.out), options.out)
    return 0


def _table(options: argparse.Namespace) -> int:
    from pytest_sdbench.card import read_card
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
    from pytest_sdbench.storage import without_secrets
    from pytest_sdbench.store_cli import leftovers, readable

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
