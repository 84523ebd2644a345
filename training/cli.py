"""Train one checkpoint from its recipe.

examples:
  python -m training --list
  python -m training bk-sdm-small data.path=LAION --dry-run
  python -m training bk-sdm-small data.path=LAION --out bk-sdm-small
  python -m training my-recipe.yaml schedule.steps=1000 optimizer.learning_rate=1e-4
  accelerate launch --num_processes 8 -m training bk-sdm-small data.path=LAION
  torchrun --nproc-per-node 2 -m training scenes-small --threads 1 --device cpu

A run that was stopped or killed goes on where it was: give the same command again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_sdbench.base.errors import SdbenchError
from pytest_sdbench.base.paths import user_cache
from training.errors import TrainingError, explain_write_errors
from training.recipes.load import load_recipe, recipe_names, require_data
from training.recipes.schema import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator

    from training.run.task import Task

STOPPED = 143
"""Exit status of a run that was asked to stop before its end: that of a process ended by SIGTERM."""

_EXPORTED = "exported.json"
_RELEASE = 120.0
"""Seconds until a restart takes the lock of the start before for that of another run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 2 explained error, 143 stopped, 130 interrupted.

    141: nobody reads the output any more.
    """
    options = _parser().parse_intermixed_args(arguments)
    rank = int(os.environ.get("RANK", "0"))
    try:
        return _run(options)
    except SdbenchError as error:
        print(f"error{f' of process {rank}' if rank else ''}: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        from training.run.processes import lost_process

        if (lost := lost_process(error)) is None:
            raise
        print(f"error of process {rank}: {lost}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output, `head` say, has seen enough
        print("nobody reads the output any more: stopped", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def run_folder(name: str) -> Path:
    """Return where a run is kept: in `SDBENCH_CACHE` or the user's cache."""
    return user_cache() / "training" / name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="the name of a shipped recipe, or a YAML file"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="change the recipe: dotted keys, YAML values"
    )
    what = parser.add_argument_group("what to do instead of training")
    what.add_argument("--list", action="store_true", help="list the recipes")
    what.add_argument(
        "--dry-run",
        action="store_true",
        help="print networks, parameters, steps, epochs, memory and disk; load and write nothing",
    )
    what.add_argument("--export-only", action="store_true", help="export what is trained so far")
    run = parser.add_argument_group("the run")
    run.add_argument(
        "--folder", type=Path, metavar="RUN_FOLDER", help="state and log (default: in the cache)"
    )
    run.add_argument(
        "--out", type=Path, metavar="EXPORT_FOLDER", help="checkpoint and card (default: RUN_FOLDER/export)"
    )
    again = run.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="insist that there is a run to go on with")
    again.add_argument("--restart", action="store_true", help="put a run that is there aside and begin anew")
    run.add_argument("--stop-at", type=_count, metavar="IMAGES", help="save and stop after so many images")
    run.add_argument(
        "--download", action="store_true", help="fetch the teacher from the hub if it is not here"
    )
    run.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    run.add_argument("--threads", type=_count, metavar="N", help="CPU threads of each process")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return number


def _run(options: argparse.Namespace) -> int:
    if options.list:
        print("\n".join(_listed()))
        return 0
    if options.recipe is None:
        raise TrainingError(
            "no recipe is named", remedy=f"Give a file, or one of: {', '.join(recipe_names())}"
        )
    if options.restart and options.export_only:
        raise TrainingError("--restart begins anew, and --export-only trains nothing", remedy="Leave one out")
    recipe = load_recipe(options.recipe, options.overrides)
    folder = (options.folder or run_folder(recipe.name)).expanduser().absolute()
    if options.dry_run:
        from training.dry_run.describe import describe

        text = describe(recipe, folder)
        if int(os.environ.get("RANK", "0")) == 0:
            print(text)
        return 0
    require_data(recipe)
    return _train(recipe, folder, options)


def _listed() -> Iterator[str]:
    names = recipe_names()
    for name in names:
        try:
            title = load_recipe(name).title
        except TrainingError:
            title = "(cannot be read: try --dry-run)"
        yield f"{name:<{max(map(len, names)) + 2}}{title}"


def _train(recipe: Recipe, folder: Path, options: argparse.Namespace) -> int:
    # Imported here: the libraries behind them take seconds, which --list and --help need not wait for.
    import torch

    from training.build import build_task
    from training.run.loop import train
    from training.run.processes import check_shared, sharded, start, started_again
    from training.run.state import load_trained

    if options.threads:
        torch.set_num_threads(options.threads)
    accelerator = start(recipe, folder, options.device, trains=not options.export_only)

    def say(line: str) -> None:
        if accelerator.is_main_process:
            print(line, flush=True)

    def build(*, export_only: bool) -> Task:
        return build_task(
            recipe,
            folder=folder,
            accelerator=accelerator,
            download=options.download,
            say=say,
            export_only=export_only,
        )

    status = 0
    with (
        _locked(folder, _RELEASE if started_again() else 0) if accelerator.is_main_process else nullcontext()
    ):
        _prepare(folder, options, accelerator)
        check_shared(folder, accelerator)
        task = build(export_only=options.export_only)
        out = (options.out or folder / "export").expanduser().absolute()
        if accelerator.is_main_process:
            _check_export(task, recipe, out)
        if options.export_only:
            seen = load_trained(task, recipe, folder)
        else:
            seen = train(task, recipe, folder, accelerator, stop_at=options.stop_at, say=say)
        if seen < recipe.images and not options.export_only:
            reached = f"{seen:,} of {recipe.images:,} images"
            say(f"stopped after {reached}: the same command goes on, --export-only exports it as it is")
            status = 0 if options.stop_at and seen >= options.stop_at else STOPPED
        else:
            if accelerator.is_main_process:
                if sharded(accelerator) and not options.export_only:
                    del task  # two of full size might not fit
                    task = build(export_only=True)
                    load_trained(task, recipe, folder)
                if _is_exported(recipe, folder, out, seen) and not options.export_only:
                    say(f"{out} is there already: --export-only writes it anew, and its card")
                else:
                    _export(task, recipe, folder, out, seen)
                    say(f"exported to {out}")
    accelerator.end_training()
    return status


def _check_export(task: Task, recipe: Recipe, out: Path) -> None:
    """Raise TrainingError for an export that could not be written after hours of training."""
    from training.export.checkpoint import check_out, export_scheduler

    check_out(out, adds=not hasattr(task, "parts"))
    if hasattr(task, "parts"):
        export_scheduler(task.parts, recipe)


def _export(task: Task, recipe: Recipe, folder: Path, out: Path, seen: int) -> None:
    from training.export.checkpoint import export_checkpoint
    from training.run.state import told
    from training.run.status import trained_seconds

    seconds = trained_seconds(folder)
    export_checkpoint(task, recipe, folder, out, seen=seen, told=told(folder), seconds=seconds)
    with explain_write_errors(folder, "the run"):
        (folder / _EXPORTED).write_text(_export_of(recipe, out, seen), encoding="utf-8")


def _is_exported(recipe: Recipe, folder: Path, out: Path, seen: int) -> bool:
    """Say whether a folder holds just this: a card may have been edited since, or have records."""
    note = folder / _EXPORTED
    return (
        out.exists() and note.is_file() and note.read_text(encoding="utf-8") == _export_of(recipe, out, seen)
    )


def _export_of(recipe: Recipe, out: Path, seen: int) -> str:
    return json.dumps({"out": str(out), "seen": seen, "recipe": recipe.model_dump(mode="json")})


def _prepare(folder: Path, options: argparse.Namespace, accelerator: Accelerator) -> None:
    """Check that there is a run to resume, or put one aside, as asked for."""
    from training.run.processes import started_again
    from training.run.state import FILE

    state = folder / FILE
    if options.resume and not state.is_file():
        raise TrainingError("there is no run to resume", file=state, remedy="Leave --resume out to begin one")
    if options.restart and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
        raise TrainingError(
            "each restart of torchrun would put aside what it should go on with",
            key="--restart",
            found=f"--max-restarts {os.environ['TORCHELASTIC_MAX_RESTARTS']}",
            remedy=f"Move {folder} away, or give another --folder",
        )
    if options.restart and started_again():
        if accelerator.is_main_process:
            print("this job was started before: --restart has been done, and the run goes on", flush=True)
    elif options.restart and accelerator.is_main_process and state.is_file():
        number = 1
        while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
            number += 1
        folder.rename(aside)
        print(f"the earlier run is now {aside}", flush=True)
    accelerator.wait_for_everyone()


@contextmanager
def _locked(folder: Path, seconds: float) -> Iterator[None]:
    """Keep a second run out of this folder; the lock goes with the process, however that ends.

    Waits `seconds` for it: a server of files may learn late that a host is gone.
    """
    from filelock import FileLock, Timeout

    if folder.exists() and not folder.is_dir():
        remedy = "Give another: --folder RUN_FOLDER"
        raise TrainingError("a file, and not the folder of a run", file=folder, remedy=remedy)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    with explain_write_errors(folder, "the run", remedy="Give another folder: --folder RUN_FOLDER"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=seconds, poll_interval=1.0)
        except Timeout:
            remedy = "Wait for it, or give --folder"
            message = "another process is training in this folder"
            raise TrainingError(message, file=folder, remedy=remedy) from None
    try:
        yield
    finally:
        lock.release()
