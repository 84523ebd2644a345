"""Read scenes: the small classifier behind FID, KID, IS and object accuracy of the embedded dataset.

Slot k of a reading is the k-th object of the caption. The picture alone determines it, because scenes
stand their objects in the order of the caption (see `scenes`): an object in the wrong place is read in the
wrong slot, and counts as wrong. An empty slot is read as `none`.

Importing this module registers the feature extractor `scenes-classifier` with torch-fidelity.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from pytest_sdbench.base.errors import CheckpointError, Unavailable
from pytest_sdbench.base.files import sha256_of
from pytest_sdbench.base.paths import reference
from pytest_sdbench.features.definition import Extractor, Measure, pixels_of
from pytest_sdbench.protocols import scenes
from pytest_sdbench.protocols.image_steps import Images

NAME = "scenes-classifier"
NONE = "none"
NAME_LABELS = (*scenes.NAMES, NONE)
COLOUR_LABELS = (*scenes.COLOURS, NONE)
SIZE_LABELS = (*scenes.SIZES, NONE)

FEATURES = 96
"""Width of the features behind FID and KID."""

_SLOT_HEADS = {"name": len(NAME_LABELS), "colour": len(COLOUR_LABELS), "size": len(SIZE_LABELS)}


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _convolution(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(self.first(x)))


class SceneClassifier(nn.Module):
    """Turn uint8 pictures [N, 3, 64, 64] into features, class logits and readings of every slot."""

    def __init__(
        self, widths: Sequence[int] = (24, 48, 96), hidden: int = 256, features: int = FEATURES
    ) -> None:
        super().__init__()
        first, second, third = widths
        self.trunk = nn.Sequential(
            _convolution(3, first, 2),
            _convolution(first, second, 2),
            _Residual(second),
            _convolution(second, third, 2),
            _Residual(third),
            nn.Conv2d(third, 32, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 8 * 8, hidden),
            nn.ReLU(),
        )
        self.features = nn.Linear(hidden, features)
        self.logits = nn.Linear(features, len(scenes.NAMES))
        """Name of the first-named object; the number of a class is that of its name."""
        self.scene = nn.Linear(
            features, scenes.MAX_OBJECTS * sum(_SLOT_HEADS.values()) + len(scenes.BACKGROUNDS)
        )
        """All that the caption says, read from the features: it makes the features carry it."""
        self.slots = nn.Linear(hidden, scenes.MAX_OBJECTS * (len(NAME_LABELS) + len(COLOUR_LABELS)))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return `features` [N, 96], `logits` [N, 128], `name` [N, 3, 129], `colour` [N, 3, 9] and `scene`.

        All are float32; `split_scene_head` takes `scene` apart.
        `images` are uint8 [N, 3, 64, 64]; float pictures are taken to be in the same 0 to 255 range.
        """
        x = images.to(self.features.weight.dtype) / 127.5 - 1
        hidden = self.trunk(x.contiguous(memory_format=torch.channels_last))
        features = self.features(hidden)
        slots = self.slots(hidden).view(len(x), scenes.MAX_OBJECTS, -1)
        name, colour = slots.split([len(NAME_LABELS), len(COLOUR_LABELS)], dim=2)
        scene = self.scene(features)
        logits = self.logits(features)
        return {"features": features, "logits": logits, "name": name, "colour": colour, "scene": scene}


def split_scene_head(scene: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Split the `scene` output into logits per slot attribute [N, 3, labels] and background [N, 11]."""
    border = scene.shape[1] - len(scenes.BACKGROUNDS)
    slots, background = scene[:, :border], scene[:, border:]
    parts = torch.split(slots.view(len(scene), scenes.MAX_OBJECTS, -1), list(_SLOT_HEADS.values()), dim=2)
    return dict(zip(_SLOT_HEADS, parts, strict=True)), background


def load_classifier(path: Path | str | None = None) -> SceneClassifier:
    """Load the classifier from its folder (default: the one that ships), in eval mode and float32.

    Raises FileNotFoundError that names the missing file, RuntimeError for a classifier that reads other names
    or colours, and when tensors and config disagree.
    """
    folder = Path(path) if path is not None else reference() / "checkpoints" / NAME
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing: `python -m training classifier` makes it")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if (config.get("names"), config.get("colours")) != (list(scenes.NAMES), list(scenes.COLOURS)):
        what = "this classifier reads other names or colours than scenes have now"
        raise RuntimeError(f"{folder / 'config.json'}: {what}: `python -m training classifier` makes another")
    model = SceneClassifier(config["widths"], config["hidden"], config["features"])
    model.load_state_dict(load_file(folder / "model.safetensors"))
    model.to(memory_format=torch.channels_last)
    return model.eval().requires_grad_(False)


def object_hits(model: SceneClassifier, images: Tensor, drawn: Sequence[scenes.Scene]) -> Tensor:
    """Tell for every object of every scene whether its slot reads its name and colour: bool [objects].

    `images` are uint8 [N, 3, 64, 64], picture n drawn after the caption of scene n.
    """
    names, colours = _hits(model, images, drawn)
    return names & colours


def name_hits(
    model: SceneClassifier, images: Tensor, drawn: Sequence[scenes.Scene]
) -> dict[str, tuple[int, int]]:
    """Return for every name of these scenes how many of its objects are read by it, and how many there are.

    `images` as `object_hits` takes them. The names stand in the order of how often scenes show them.
    """
    names, _ = _hits(model, images, drawn)
    objects = [thing.name for one in drawn for thing in one.objects]
    known = Counter(objects)
    right = Counter(name for name, hit in zip(objects, names.tolist(), strict=True) if hit)
    return {name: (right[name], known[name]) for name in scenes.NAMES if known[name]}


@torch.no_grad()
def _hits(model: SceneClassifier, images: Tensor, drawn: Sequence[scenes.Scene]) -> tuple[Tensor, Tensor]:
    """Tell of every object whether its slot reads its name, and whether its colour: bool [objects] each."""
    outputs = model(images)
    slots = torch.tensor([(row, slot) for row, one in enumerate(drawn) for slot in range(len(one.objects))])
    things = [thing for one in drawn for thing in one.objects]

    def right(name: str, labels: Sequence[str]) -> Tensor:
        read = outputs[name].argmax(-1).cpu()[slots[:, 0], slots[:, 1]]
        hit: Tensor = read == torch.tensor([labels.index(getattr(thing, name)) for thing in things])
        return hit

    return right("name", NAME_LABELS), right("colour", COLOUR_LABELS)


class SceneFeatureExtractor(FeatureExtractorBase):  # type: ignore[misc]
    """The classifier as torch-fidelity wants it: uint8 [N, 3, 64, 64] to a tuple of features, float32.

    `feature_extractor_weights_path` is the classifier's folder; by default the one that ships.
    """

    def __init__(
        self,
        name: str,
        features_list: Sequence[str],
        feature_extractor_weights_path: str | None = None,
        **_unused: Any,
    ) -> None:
        super().__init__(name, list(features_list))
        self.model = load_classifier(feature_extractor_weights_path)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return str(FEATURES), "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return {"isc": "logits", **dict.fromkeys(("fid", "kid", "prc"), str(FEATURES))}[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        return False  # compiling costs more than the network

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 3, 64, 64, dtype=torch.uint8)

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        if input.dtype != torch.uint8 or input.dim() != 4 or tuple(input.shape[1:]) != (3, 64, 64):
            raise ValueError(f"{NAME} reads uint8 [N, 3, 64, 64], got {input.dtype} {list(input.shape)}")
        outputs = self.model(input)
        known = {str(FEATURES): outputs["features"], "logits": outputs["logits"]}
        return tuple(known[name].float() for name in self.features_list)


if NAME not in FEATURE_EXTRACTORS_REGISTRY:
    register_feature_extractor(NAME, SceneFeatureExtractor)


def _weights_file() -> Path:
    path = reference() / "checkpoints" / NAME / "model.safetensors"
    if not path.is_file():
        remedy = "Install the package again, or make it: python -m training classifier"
        raise Unavailable("the classifier of the embedded dataset is not here", file=path, remedy=remedy)
    return path


def _network() -> SceneClassifier:
    path = _weights_file()
    try:
        return load_classifier(path.parent)
    except Exception as problem:
        what = f"the classifier cannot be loaded: {problem}"
        raise CheckpointError(what, file=path, remedy="Install the package again") from problem


def _load(name: str, *, data_root: Path | None, device: str, download: bool) -> tuple[Measure, str]:
    network = _network().to(device)

    def measure(images: Images, prompts: Sequence[str]) -> dict[str, Tensor]:
        with torch.inference_mode():
            return dict(network(pixels_of(images, device)))

    return measure, sha256_of(_weights_file())


def _describe(name: str, data_root: Path | None) -> str:
    _network()
    return f"{_weights_file()}, loads"


SCENES_CLASSIFIER = Extractor(
    name=NAME,
    outputs={"features": FEATURES, "logits": len(scenes.NAMES)},
    size=64,
    load=_load,
    weights=lambda name: sha256_of(_weights_file()),
    describe=_describe,
)
