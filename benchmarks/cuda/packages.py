"""Fetch the wheels that a machine with torch, but without a network, lacks.

There: `python3 -m pip install --no-index --no-deps --target SITE FOLDER/*.whl` and `PYTHONPATH=SITE`.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import ROOT

LACKING = (
    "annotated-types",
    "diffusers",
    "ftfy",
    "importlib_metadata",
    "lazy-importer",
    "open_clip_torch",
    "pydantic",
    "pydantic_core",
    "ruamel.yaml",
    "torch-fidelity",
    "typing-inspection",
    "wcwidth",
)
"""What the measurements import beside `PRESENT`; it is installed without what it needs in turn."""
PRESENT = (
    "accelerate",
    "filelock",
    "fsspec",
    "huggingface-hub",
    "jinja2",
    "markupsafe",
    "numpy",
    "pillow",
    "pytest",
    "pytest-benchmark",
    "regex",
    "requests",
    "safetensors",
    "scipy",
    "tabulate",
    "timm",
    "torch",
    "torchmetrics",
    "torchvision",
    "tqdm",
    "transformers",
    "zipp",
)
"""What such a machine is taken to have, each with what it needs."""
LIMIT = 16 << 20
"""Bytes of wheels: they travel with the tree."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Fetch them in the versions of constraints.txt, and say how large they are."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda.packages", description=__doc__)
    parser.add_argument("--python", default="3.12", help="version of Python there [%(default)s]")
    parser.add_argument(
        "--platform",
        action="append",
        help="tag of a wheel that runs there; may be repeated [manylinux 2.17 and 2.28 of x86_64]",
    )
    parser.add_argument("--out", type=Path, default=ROOT / ".wheels", help="folder [.wheels, ignored by git]")
    parser.add_argument("packages", nargs="*", default=LACKING, help=f"[{', '.join(LACKING)}]")
    asked = parser.parse_args(arguments)
    platforms = asked.platform or ["manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"]
    asked.out.mkdir(parents=True, exist_ok=True)
    for old in asked.out.glob("*.whl"):
        old.unlink()
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", asked.python),
            *(argument for platform in platforms for argument in ("--platform", platform)),
            *("--dest", str(asked.out)),
            *pinned(asked.packages, (ROOT / "constraints.txt").read_text(encoding="utf-8")),
        ],
        check=True,
    )
    wheels = sorted(asked.out.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels)
    for wheel in wheels:
        print(f"{wheel.stat().st_size / 2**20:6.2f} MiB  {wheel.name}")
    print(f"{size / 2**20:6.2f} MiB  in {asked.out}")
    if size > LIMIT:
        sys.exit(f"more than {LIMIT / 2**20:.0f} MiB: they would not travel with the tree")


def pinned(packages: Sequence[str], constraints: str) -> list[str]:
    """Return `NAME==VERSION` for each package that the constraints fix, and the name alone for others."""
    versions = {_plain(name): line for line in constraints.splitlines() for name in [line.partition("==")[0]]}
    return [versions.get(_plain(package), package) for package in packages]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
