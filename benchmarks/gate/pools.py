"""Draw the images that the gate is measured on: `python -m benchmarks.gate.pools`.

A pool is many images of one member of the embedded family under its own protocol, the first of which are
those of its cards; a seed set is the first 512 prompts once more, from other seeds. Both are kept in an
evidence store, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.family.__main__ import spec
from pytest_sdbench.base.paths import user_cache

if TYPE_CHECKING:
    from pytest_sdbench.protocols.protocol import Protocol

POOL = 30_000
"""Images in the pool of each member: minutes on a GPU. On a CPU 10,000 are an hour and a half."""

QUICK = 512
SEED_SETS = 24
FIRST_SEED = 5000
"""Seeds of the sets: from this one on. That of the cards is another."""

PROTOCOLS = {
    "scenes-sd": "scenes-30k",
    "scenes-base": "scenes-30k",
    "scenes-small": "scenes-30k",
    "scenes-small-2m": "scenes-30k",
    "scenes-tiny": "scenes-30k",
    "scenes-tiny-lcm": "scenes-lcm4-5k",
    "scenes-portrait": "scenes-portrait-5k",
}
"""The members, and a protocol whose draw is that of their cards."""

STORE = user_cache() / "experiments" / "evidence"


def pool_protocol(member: str, n: int = POOL) -> Protocol:
    """Return the protocol of a member's cards with n images: the same draw, and more of it."""
    from pytest_sdbench.protocols.load import load_protocol

    return with_images(load_protocol(PROTOCOLS[member]), n)


def with_images(protocol: Protocol, n: int) -> Protocol:
    """Return a protocol of scenes with n images, more than it has prompts for if need be."""
    rows = max(n, protocol.prompts.rows)
    # Captions of scenes never end; how many a protocol takes of them moves no image.
    prompts = {**protocol.prompts.model_dump(), "rows": rows}
    return type(protocol).model_validate({**protocol.model_dump(), "n": n, "prompts": prompts})


def seed_protocols(member: str, count: int = SEED_SETS) -> Iterator[Protocol]:
    """Return the protocols of a member's seed sets."""
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        yield pool_protocol(member, QUICK).with_seed(seed)


def draw(member: str, protocol: Protocol, store: Path, device: str) -> None:
    """Make what the store lacks of a member under a protocol."""
    from pytest_sdbench.base.workspace import Workspace
    from pytest_sdbench.evaluation.evaluate import make_evidence
    from pytest_sdbench.evaluation.tuning import Tuning
    from pytest_sdbench.models.checkpoint import resolve

    # Members are drawn beside each other, each by a process: none of them is worth a compilation.
    began, tuning = time.monotonic(), Tuning(compile=False)
    made = make_evidence(
        resolve(spec(member)), protocol, Workspace(store, device=device, progress=False), tuning=tuning
    )
    print(
        f"{member}: {protocol.n:,} images of seed {protocol.seeds.seed}, {made.images_made:,} made in "
        f"{time.monotonic() - began:.0f} s",
        flush=True,
    )


def calibrate_quick(member: str, count: int, store: Path) -> Path:
    """Record what a member's quick protocol scatters by over its seed sets, as `--sdbench-calibrate` does."""
    from pytest_sdbench.base.paths import reference
    from pytest_sdbench.base.workspace import Workspace
    from pytest_sdbench.cards.card import read_card
    from pytest_sdbench.evaluation.evaluate import Evaluation, evaluate
    from pytest_sdbench.gate.calibration import calibrate, write_calibration
    from pytest_sdbench.models.checkpoint import resolve
    from pytest_sdbench.protocols.load import load_protocol

    card = read_card(reference() / "cards" / f"{member}.md")
    checkpoint = resolve(spec(member))

    def scored(protocol: Protocol) -> Evaluation:
        return evaluate(checkpoint, protocol, Workspace(store, progress=False))

    protocol = load_protocol(card.protocols[0])
    return write_calibration(protocol, calibrate(card, protocol, scored, count, FIRST_SEED))


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw pools, then seed sets."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate.pools", description=__doc__)
    parser.add_argument("members", nargs="*", metavar="MEMBER", help=f"of {', '.join(PROTOCOLS)} [all]")
    parser.add_argument("--images", type=int, default=POOL, help="in each pool [%(default)s]")
    parser.add_argument("--seed-sets", type=int, default=SEED_SETS, help="of each member [%(default)s]")
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="record what the seed sets scatter by, in reference/calibration",
    )
    parser.add_argument("--device", default="cpu", help="a torch device [%(default)s]")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--store", type=Path, default=STORE)
    options = parser.parse_args(arguments)

    import torch

    torch.set_num_threads(options.threads)
    members = options.members or list(PROTOCOLS)
    for member in members:
        draw(member, pool_protocol(member, options.images), options.store, options.device)
    for member in members:
        for protocol in seed_protocols(member, options.seed_sets):
            draw(member, protocol, options.store, options.device)
        if options.calibrate:
            print(f"recorded in {calibrate_quick(member, options.seed_sets, options.store)}")


if __name__ == "__main__":
    main()
