"""Compute reference statistics of images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pytest_sdbench.base.errors import SdbenchError
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.commands.shared import check_counts, share


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    told = "a folder or archive (.zip, .tar) of images, shards (data-{000..012}.tar), or a range of embedded "
    told += "scenes (scenes:FIRST-LAST)"
    command.add_argument("source", nargs="+", metavar="SOURCE", help=told)
    told = "where to write it"
    command.add_argument("-o", "--out", type=Path, metavar="FILE.npz", required=True, help=told)
    told = "any extractor of features, such as inception-torch-fidelity, clip-vit-l14-336, dinov2-vitl14 or "
    told += "scenes-classifier [%(default)s]"
    command.add_argument("--extractor", default="inception-pytorch-fid", metavar="NAME", help=told)
    told = "squash every image to a square first (Pillow, bicubic); the COCO statistics are of 256"
    command.add_argument("--resize", type=int, metavar="PIXELS", help=told)
    told = "keep the features of N images, for KID, precision, recall and coverage [0]"
    command.add_argument("--features", type=int, default=0, metavar="N", help=told)
    told = "of a range of scenes, those of these layouts"
    command.add_argument("--layouts", nargs="+", default=[], metavar="NAME", help=told)
    told = "of a range of scenes, take names of faces alone, or of things, which are all others [%(default)s]"
    command.add_argument("--domain", default="all", metavar="all|faces|things", help=told)
    share(command, "--background", "--data", "--device", "--download")


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    from pytest_sdbench.base.environment import torch_device
    from pytest_sdbench.features.references import make_statistics
    from pytest_sdbench.features.scene_set import SceneSet
    from pytest_sdbench.protocols.sections import Resize

    check_counts(options, "resize")
    if options.features < 0:
        raise SdbenchError("give 0 or more", key="--features", found=options.features)
    steps = [Resize(resize=options.resize, filter="pil-bicubic")] if options.resize else []
    source = _source(options.source)
    _check_scenes(options, source)
    workspace = Workspace(
        data_root=options.data,
        device=torch_device(options.device, option="--device"),
        download=options.download,
    )
    made = make_statistics(
        SceneSet(source, options.layouts, options.domain) if isinstance(source, range) else source,
        options.out,
        workspace,
        extractor=options.extractor,
        steps=steps,
        keep=options.features,
        background=options.background,
    )
    print(f"written to {options.out}: {made.n:,} images, {len(made.mu)} features")
    return 0


def _check_scenes(options: argparse.Namespace, source: range | Sequence[str]) -> None:
    from pytest_sdbench.protocols.scenes import DOMAINS, LAYOUTS

    if not isinstance(source, range):
        if options.layouts:
            raise SdbenchError("layouts are those of scenes", key="--layouts", found=source[0])
        if options.domain != "all":
            raise SdbenchError("domains are those of scenes", key="--domain", found=source[0])
    for name in options.layouts:
        if name not in LAYOUTS:
            remedy = f"Give {', '.join(LAYOUTS)}"
            raise SdbenchError("no scene has this layout", key="--layouts", found=name, remedy=remedy)
    if options.domain not in DOMAINS:
        remedy = f"Give {', '.join(DOMAINS)}"
        raise SdbenchError("scenes have no such domain", key="--domain", found=options.domain, remedy=remedy)


def _source(texts: Sequence[str]) -> range | Sequence[str]:
    """Read ``scenes:FIRST-LAST`` as a range that includes its last scene, anything else as sets of images."""
    scenes = next((text for text in texts if text.startswith("scenes:")), None)
    if scenes is None:
        return texts
    if len(texts) > 1:
        raise SdbenchError("a range of scenes stands alone", key="source", found=list(texts))
    first, dash, last = scenes.removeprefix("scenes:").partition("-")
    if not (dash and first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        remedy = "Write scenes:20000000-20029999"
        raise SdbenchError("not a range of scenes", key="source", found=scenes, remedy=remedy)
    return range(int(first), int(last) + 1)
