"""Make the example pages of the embedded family: ``python -m benchmarks.family.reports [FOLDER]``.

A consistency model rounded to 8 bits, whose every claim holds; to 4, whose claims fell; to 5, which 512
images cannot tell; and a card whose weights are not on this machine. On two cores it takes ten minutes; what
was drawn is kept in the folder.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pytest_sdbench.base.paths import reference

ROOT = Path(__file__).resolve().parents[2]
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
    Example("held", CARD, ("-m", NETWORK, "-k", "not 5k"), 8, "Release: "),
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
    """Run an example and return its page; raises ValueError for one that says something else."""
    page = folder / f"{example.name}.html"
    card = (reference() / "cards" / f"{example.card}.md").relative_to(ROOT)
    words = ["--sdbench", str(card), *example.words, f"--sdbench-store={folder / 'store'}"]
    if example.bits is not None:
        weights = folder / f"{example.card}-{example.bits}-bits"
        if not weights.exists():
            rounded(reference() / "checkpoints" / example.card, weights, example.bits)
        words.append(f"--sdbench-weights={example.card}={weights}")
        # So that the worst of all pictures can be shown.
        words.append("--sdbench-keep-images=all")
    run = [sys.executable, "-m", "pytest", *words, f"--sdbench-report={page}"]
    subprocess.run(run, cwd=ROOT, check=False)  # what failed is what the page is of
    text = page.read_text(encoding="utf-8")
    if f"<title>{example.sentence}" not in text or page.stat().st_size > MOST:
        title = text.partition("<title>")[2].partition("</title>")[0]
        raise ValueError(
            f"{page}: {page.stat().st_size:,} bytes, {title!r}; it should say {example.sentence!r}"
        )
    return page


def main(words: list[str]) -> int:
    """Make all examples in a folder below the checkout, or those that are named after it."""
    folder, *names = words or ["build/reports"]
    (ROOT / folder).mkdir(parents=True, exist_ok=True)
    for example in EXAMPLES:
        if not names or example.name in names:
            print(make(example, ROOT / folder))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
