"""Train the classifier of scenes, on real scenes alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_sdbench.features import classifier
from pytest_sdbench.protocols import scenes
from training.embedded.half import save_weights
from training.recipes.schema import Classifier, Recipe
from training.run.randomness import Dice
from training.run.task import Piece, Task

_LABELS = {
    "name": classifier.NAME_LABELS,
    "colour": classifier.COLOUR_LABELS,
    "size": classifier.SIZE_LABELS,
}


_SCALE_FROM = 9_000_000
"""First of the training scenes that the scale of the features is measured on."""


class ClassifierTask(Task):
    """Read every object of a scene, slot by slot."""

    def __init__(self, recipe: Recipe, objective: Classifier) -> None:
        torch.manual_seed(recipe.schedule.seed)
        self.network = objective.network
        self.model: Any = classifier.SceneClassifier(**objective.network)
        self.model.to(memory_format=torch.channels_last)

    def losses(self, model: nn.Module, piece: Piece) -> dict[str, Tensor]:
        drawn = [scenes.scene(scenes.TRAINING[piece.first + i]) for i in range(piece.count)]
        images = render(drawn)
        device = piece.dice.device
        outputs = model(roughen(images.to(device), piece.dice))
        targets = {name: _slot_targets(drawn, name).to(device) for name in _LABELS}

        slots = [_cross_entropy(outputs[name], targets[name]) for name in ("name", "colour")]
        logits = _cross_entropy(outputs["logits"], targets["name"][:, 0])
        parts, background = classifier.split_scene_head(outputs["scene"])
        grounds = torch.tensor([scenes.BACKGROUNDS.index(one.background) for one in drawn], device=device)
        told = [_cross_entropy(parts[name], targets[name]) for name in _LABELS]
        told.append(_cross_entropy(background, grounds))

        loss = torch.stack(slots).sum() + 0.5 * logits + 0.3 * torch.stack(told).sum()
        filled = targets["name"] < len(scenes.NAMES)
        right = outputs["name"].argmax(-1) == targets["name"]
        right &= outputs["colour"].argmax(-1) == targets["colour"]
        return {"loss": loss, "objects": right[filled].float().mean()}

    def export(self, folder: Path) -> None:
        """Write config.json and model.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        model = with_unit_features(self.model.cpu(), range(_SCALE_FROM, _SCALE_FROM + 2048))
        save_weights(model, folder / "model.safetensors")
        config = {**self.network, "names": scenes.NAMES, "colours": scenes.COLOURS}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def render(drawn: Sequence[scenes.Scene]) -> Tensor:
    """Draw scenes: uint8 [N, 3, H, W]."""
    return torch.stack([torch.from_numpy(scenes.render(one)) for one in drawn]).permute(0, 3, 1, 2)


def roughen(images: Tensor, dice: Dice) -> Tensor:
    """Blur a third of the pictures and add noise to all, in amounts drawn per picture; float, 0 to 255.

    Decoded pictures are softer than real ones; it is to read outlines, not the sharpness of edges.
    """
    pictures = images.float()
    blurred = functional.avg_pool2d(functional.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    amount = dice.uniform(1, 1, 1)
    blur = (dice.uniform(1, 1, 1) < 1 / 3) * amount
    pictures = pictures + blur * (blurred - pictures)
    deviation = 12 * dice.uniform(1, 1, 1).square()
    return pictures + deviation * dice.normal(*pictures.shape[1:])


def _slot_targets(drawn: list[scenes.Scene], name: str) -> Tensor:
    labels = _LABELS[name]
    rows = torch.full((len(drawn), scenes.MAX_OBJECTS), labels.index(classifier.NONE))
    for row, one in enumerate(drawn):
        for slot, thing in enumerate(one.objects):
            rows[row, slot] = labels.index(getattr(thing, name))
    return rows


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, -2), targets.flatten())


@torch.no_grad()
def with_unit_features(model: classifier.SceneClassifier, indices: range) -> classifier.SceneClassifier:
    """Return a copy whose features have a mean variance of 1 over these real scenes, and that reads the same.

    Distances between features then have a scale that a reader knows, whatever scale training ended with: the
    features are divided by a number, and the weights of the heads behind them multiplied by it.
    """
    scaled = copy.deepcopy(model).eval()
    rows = [map(scenes.scene, indices[first : first + 128]) for first in range(0, len(indices), 128)]
    features = torch.cat([scaled(render(list(some)))["features"] for some in rows])
    scale = features.double().var(dim=0).mean().sqrt().float()
    for tensor in (scaled.features.weight, scaled.features.bias):
        tensor /= scale
    for head in (scaled.logits, scaled.scene):
        head.weight *= scale
    return scaled


@torch.no_grad()
def object_accuracy(model: classifier.SceneClassifier, indices: range) -> float:
    """Return the share of objects of real scenes that are read right, name and colour."""
    hits = []
    for first in range(0, len(indices), 128):
        drawn = [scenes.scene(index) for index in indices[first : first + 128]]
        hits.append(classifier.object_hits(model, render(drawn), drawn))
    return float(torch.cat(hits).float().mean())
