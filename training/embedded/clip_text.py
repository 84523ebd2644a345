"""Train the text encoder of the embedded family beside pictures, as CLIP trained Stable Diffusion's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from transformers import CLIPTextModel

from training.embedded.clip import ClipTask
from training.embedded.half import save_half
from training.recipes.schema import Clip, Recipe
from training.students.scratch import text_config
from training.students.tokenizer import build_tokenizer, save_tokenizer


class _Towers(nn.Module):
    """A tower of pictures and transformers' text encoder, which meet as CLIP's do."""

    def __init__(self, vision: nn.Module, text: Any, width: int, embed_dim: int) -> None:
        super().__init__()
        self.vision, self.text = vision, text
        self.projection = nn.Linear(width, embed_dim, bias=False)
        # CLIP begins at a temperature of 0.07 (Radford et al. 2021, section 2.5).
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def forward(self, pictures: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return unit vectors of the pictures and of the captions, and the scale of their likeness."""
        seen = nn.functional.normalize(self.vision(pictures), dim=-1)
        told = nn.functional.normalize(self.projection(self.text(tokens).pooler_output), dim=-1)
        return seen, told, self.logit_scale.exp()


class ClipTextTask(ClipTask):
    """Tell captions from captions and near misses, and keep the text encoder alone."""

    def __init__(self, recipe: Recipe, objective: Clip) -> None:
        torch.manual_seed(recipe.schedule.seed)
        self.objective = objective
        self.tokenizer = build_tokenizer()
        self.text: Any = CLIPTextModel(text_config(objective.text, len(self.tokenizer)))
        seen = objective.vision
        vision = ModifiedResNet(
            layers=seen["layers"],
            output_dim=objective.embed_dim,
            heads=seen["width"] * 32 // seen["head_width"],
            image_size=seen["image_size"],
            width=seen["width"],
        )
        vision.to(memory_format=torch.channels_last)
        self.model = _Towers(vision, self.text, objective.text["hidden_size"], objective.embed_dim)

    def export(self, folder: Path) -> None:
        """Write `text_encoder/` and `tokenizer/`, as a pipeline has them."""
        save_half(self.text.cpu(), folder / "text_encoder")
        save_tokenizer(self.tokenizer, folder / "tokenizer")
