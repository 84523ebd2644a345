"""Draw the images that the gate is measured on: `python -m benchmarks.gate.pools`.

A pool is many images of one member of the embedded family under its own protocol, the first of which are
those of its cards; a seed set is the first 512 prompts once more, from other seeds. Both are kept in an
evidence store, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import options
from benchmarks.family.members import spec
from pytest_sdbench.base.paths import user_cache
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.evaluation.evidence import make_evidence
from pytest_sdbench.evaluation.tuning import Tuning
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.protocol import Protocol

POOL = 10_000
"""Images in the pool of each member: for all of them two hours of two CPU cores."""

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
    # Members are drawn beside each other, each by a process: none of them is worth a compilation.
    began, workspace = time.monotonic(), Workspace(store, device=device, progress=False)
    made = make_evidence(resolve(spec(member)), protocol, workspace, tuning=Tuning(compile=False)).images_made
    print(
        f"{member}: {protocol.n:,} images of seed {protocol.seeds.seed}, {made:,} made in "
        f"{time.monotonic() - began:.0f} s",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw pools, then seed sets."""
    parser = options.parser("gate.pools", __doc__, "--device", "--threads")
    parser.set_defaults(device="cpu")
    parser.add_argument("members", nargs="*", metavar="MEMBER", help=f"of {', '.join(PROTOCOLS)} [all]")
    parser.add_argument("--images", type=int, default=POOL, help="in each pool [%(default)s]")
    parser.add_argument("--seed-sets", type=int, default=SEED_SETS, help="of each member [%(default)s]")
    parser.add_argument("--store", type=Path, default=STORE, help="evidence store [%(default)s]")
    asked = options.parse(parser, arguments)
    members = asked.members or list(PROTOCOLS)
    for member in members:
        draw(member, pool_protocol(member, asked.images), asked.store, asked.device)
    for member in members:
        for protocol in seed_protocols(member, asked.seed_sets):
            draw(member, protocol, asked.store, asked.device)


if __name__ == "__main__":
    main()
