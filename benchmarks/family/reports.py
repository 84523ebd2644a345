"""Make the example pages in ``docs/examples``: ``python -m benchmarks.family.reports``.

They are of the embedded family: a consistency model rounded to 8 bits, whose every claim holds; to 4, whose
claims fell; to 5, which 512 images cannot tell; and a card whose weights are not on this machine. On two
cores it takes ten minutes. Rounded weights and pictures lie in ``build/reports``: what changes of the family
is rounded and drawn anew.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pytest_sdbench.base.paths import reference

ROOT = Path(__file__).resolve().parents[2]
PAGES, SCRATCH = ROOT / "docs" / "examples", Path("build", "reports")
CARD, NETWORK = "scenes-tiny-lcm", "size or compute or quality"
MOST = 500_000
"""Bytes that an example may have."""


@dataclass(frozen=True)
class Example:
    """One page, and the run that it is of."""

    name: str
    card: str
    words: tuple[str, ...]
    """Options of the run."""
    bits: int | None = None
    """To which the U-Net is rounded; None: the card's own checkpoint."""
    sentence: str = ""
    """What the page begins with: another one is no such example."""


EXAMPLES = (
    Example("held", CARD, ("-m", NETWORK, "--sdbench-max-images=all"), 8, "Release: "),
    Example("fell", CARD, ("-m", NETWORK, "-k", "not 5k"), 4, "Do not release: "),
    Example("inconclusive", CARD, ("-m", NETWORK, "-k", "not 5k and not fidelity"), 5, "Cannot tell: 1 of "),
    Example("not-measured", "bk-sdm-small", ("-m", "quality"), None, "Cannot tell: nothing was measured"),
)


def rounded(unet: Path, folder: Path, bits: int) -> Path:
    """Copy a U-Net, its weights rounded to so many bits: symmetric, with a scale an output channel."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(unet, folder)
    (file,) = folder.rglob("*.safetensors")
    most, state = 2 ** (bits - 1) - 1, load_file(file)
    for name, weight in state.items():
        if weight.ndim > 1:
            rows = weight.float().flatten(1)
            scale = rows.abs().amax(1, keepdim=True).clamp(min=1e-12) / most
            state[name] = ((rows / scale).round() * scale).view(weight.shape)
    save_file({name: weight.float() for name, weight in state.items()}, file, {"format": "pt"})
    return folder


def make(example: Example, folder: Path) -> Path:
    """Run an example with its scratch in a folder, and return its page, which replaces the one in `PAGES`.

    Raises ValueError for a page that says something else, or is too large.
    """
    made = folder / f"{example.name}.html"
    card = (reference() / "cards" / f"{example.card}.md").relative_to(ROOT)
    words = ["--sdbench", str(card), *example.words, f"--sdbench-store={folder / 'store'}"]
    if example.bits is not None:
        weights = folder / f"{example.card}-{example.bits}-bits"
        shutil.rmtree(ROOT / weights, ignore_errors=True)  # the checkpoint may be another one by now
        rounded(reference() / "checkpoints" / example.card, ROOT / weights, example.bits)
        # All pictures are kept, so that the worst of all can be shown.
        words += [f"--sdbench-weights={example.card}={weights}", "--sdbench-keep-images=all"]
    run = [sys.executable, "-m", "pytest", *words, f"--sdbench-report={made}"]
    subprocess.run(run, cwd=ROOT, check=False)  # what failed is what the page is of
    text = (ROOT / made).read_text(encoding="utf-8")
    size = len(text.encode())
    if f"<title>{example.sentence}" not in text or size > MOST:
        title = text.partition("<title>")[2].partition("</title>")[0]
        raise ValueError(f"{made}: {size:,} bytes, {title!r}; it should say {example.sentence!r}")
    PAGES.mkdir(exist_ok=True)
    return Path(shutil.copy(ROOT / made, PAGES))


def main(names: list[str]) -> int:
    """Make all examples, or those that are named."""
    (ROOT / SCRATCH).mkdir(parents=True, exist_ok=True)
    for example in EXAMPLES:
        if not names or example.name in names:
            print(make(example, SCRATCH))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
