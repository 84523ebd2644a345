"""Train the small open_clip model that scores how well a picture fits its caption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from pytest_sdbench.protocols import scenes
from training.data.batch import tokenize
from training.embedded.classifier import render, roughen
from training.embedded.half import save_weights
from training.recipes.schema import Clip, Recipe
from training.run.task import Piece, Task
from training.students.tokenizer import CONTEXT, build_tokenizer, save_tokenizer

NAME = "scenes-clip"


class ClipTask(Task):
    """Tell the caption of a scene from the captions of other scenes and from near misses.

    The other scenes are those of the same piece: more processes or smaller micro-batches mean fewer of them.
    """

    def __init__(self, recipe: Recipe, objective: Clip) -> None:
        torch.manual_seed(recipe.schedule.seed)
        self.objective = objective
        self.tokenizer = build_tokenizer()
        self.clip: Any = open_clip.CLIP(**self.config())
        self.clip.visual.to(memory_format=torch.channels_last)
        self.model = self.clip

    def config(self) -> dict[str, Any]:
        """Return the `model_cfg` of open_clip_config.json."""
        text = {**self.objective.text, "context_length": CONTEXT, "vocab_size": len(self.tokenizer)}
        # open_clip takes its tokenizer from the model's own folder as soon as this name is set.
        text["hf_tokenizer_name"] = NAME
        return {"embed_dim": self.objective.embed_dim, "vision_cfg": self.objective.vision, "text_cfg": text}

    def losses(self, model: nn.Module, piece: Piece) -> dict[str, Tensor]:
        device, count = piece.dice.device, piece.count
        drawn = [scenes.scene(scenes.TRAINING[piece.first + i]) for i in range(count)]
        captions = [one.caption for one in drawn]
        captions += [wrong for one in drawn for wrong in scenes.near_misses(one, self.objective.near_misses)]
        pictures = roughen(render(drawn).to(device), piece.dice) / 127.5 - 1
        tokens, _ = tokenize(self.tokenizer, captions)
        seen, told, scale = model(pictures.contiguous(memory_format=torch.channels_last), tokens.to(device))
        scale = scale.clamp(max=100)
        likeness = scale * seen @ told.T
        own = torch.arange(count, device=device)
        by_picture = functional.cross_entropy(likeness, own)
        by_caption = functional.cross_entropy(likeness[:, :count].T, own)
        return {
            "loss": by_picture + 0.5 * by_caption,
            "right": (likeness.argmax(1) == own).float().mean(),
            "scale": scale,
        }

    def export(self, folder: Path) -> None:
        """Write config, weights and tokenizer so that open_clip loads them as `local-dir:FOLDER`."""
        folder.mkdir(parents=True, exist_ok=True)
        preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "size": [64, 64], "interpolation": "bicubic"}
        config = {"model_cfg": self.config(), "preprocess_cfg": preprocess}
        (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_weights(self.clip, folder / "open_clip_model.safetensors")
        save_tokenizer(self.tokenizer, folder)


@torch.no_grad()
def near_miss_accuracy(folder: Path, indices: range, count: int = 4) -> float:
    """Return how often a picture likes its caption more than a near miss, over `count` misses a scene."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    right = []
    for first in range(0, len(indices), 32):
        drawn = [scenes.scene(index) for index in indices[first : first + 32]]
        pictures = torch.stack([preprocess(Image.fromarray(scenes.render(one))) for one in drawn])
        told = [caption for one in drawn for caption in (one.caption, *scenes.near_misses(one, count))]
        texts = model.encode_text(tokenizer(told), normalize=True).view(len(drawn), count + 1, -1)
        seen = model.encode_image(pictures, normalize=True)
        likeness = (texts @ seen[:, :, None])[:, :, 0]
        right.append((likeness[:, :1] > likeness[:, 1:]).float().flatten())
    return float(torch.cat(right).mean())
