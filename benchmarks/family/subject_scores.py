"""Score DreamBooth on scenes: is it the subject, is it where the prompt says, does the class live on?

The measures are those of Ruiz et al. 2023 with the extractors of scenes in the place of DINO, CLIP and
LPIPS: both were trained on scenes alone and have never seen the subject. All cosines are of features as they
are, not centred, so they have no zero point: read them beside those of real pictures (`mean_cosine` of the
real ones alone) and of the model before training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from benchmarks.family.subject import shows_subject, without_identifier
from pytest_sdbench.features.classifier import SceneClassifier
from pytest_sdbench.features.clip import ClipScorer

Pixels = npt.NDArray[np.uint8]


SCORES = {
    "seen": "subject seen ↑",
    "subject_by_features": "subject, by features ↑",
    "subject_by_clip": "CLIP-I ↑",
    "prompt_by_clip": "CLIP-T ↑",
    "prior_seen": "subject in the class ↓",
    "prior_leak": "class like subject ↓",
    "prior_diversity": "diversity of the class ↑",
}
"""The scores, and their headings in a table."""


def score_subject(
    drawn: Pixels,
    prompts: Sequence[str],
    of_class: Pixels,
    real: Pixels,
    *,
    classifier: SceneClassifier,
    clip: ClipScorer,
) -> dict[str, float]:
    """Score pictures of prompts, uint8 [N, 64, 64, 3], and of the class, against real ones of the subject."""
    prior, told = features(classifier, of_class), [without_identifier(prompt) for prompt in prompts]
    return {
        **score_likeness(drawn, real, classifier, clip),
        # CLIP-T: mean cosine of scenes-clip between a picture and its prompt, without the identifier.
        "prompt_by_clip": float(clip(drawn, told).double().mean()),
        # PRES: mean cosine of the classifier features of pictures of the class and real ones of the subject:
        # high where the class has become the subject.
        "prior_leak": mean_cosine(prior, features(classifier, real)),
        # Share of the pictures of the class that show the subject: at best none.
        "prior_seen": float(shows_subject(of_class).mean()),
        # DIV, in the place of LPIPS: mean over pairs of pictures of the class of 1 - cosine of their
        # classifier features: low where the class has shrunk to a few pictures.
        "prior_diversity": 1 - mean_cosine(prior),
    }


def score_likeness(
    drawn: Pixels, real: Pixels, classifier: SceneClassifier, clip: ClipScorer
) -> dict[str, float]:
    """Score how like the subject pictures are, uint8 [N, 64, 64, 3], beside real ones of it."""
    return {
        # Share of the pictures that show both halves of the subject, in their order.
        "seen": float(shows_subject(drawn).mean()),
        # In the place of DINO: mean cosine of the classifier features of a drawn and a real picture of the
        # subject, over all pairs. Unlike DINO's, the features were learned from labels.
        "subject_by_features": mean_cosine(features(classifier, drawn), features(classifier, real)),
        # CLIP-I: the same with the image embeddings of scenes-clip.
        "subject_by_clip": mean_cosine(embeddings(clip, drawn), embeddings(clip, real)),
    }


def mean_cosine(some: Tensor, others: Tensor | None = None) -> float:
    """Return the mean cosine over all pairs of rows of [N, D] and [M, D], or over pairs within [N, D]."""
    first = functional.normalize(some.double(), dim=1)
    if others is not None:
        return float((first @ functional.normalize(others.double(), dim=1).T).mean())
    count = len(first)
    if count < 2:
        raise ValueError("distinct pairs need two rows or more")
    return float(((first @ first.T).sum() - count) / (count * (count - 1)))


@torch.no_grad()
def features(classifier: SceneClassifier, images: Pixels) -> Tensor:
    """Return the classifier's features of uint8 [N, 64, 64, 3]: float32 [N, 96]."""
    found: Tensor = classifier(torch.from_numpy(images).permute(0, 3, 1, 2))["features"]
    return found


@torch.no_grad()
def embeddings(clip: ClipScorer, images: Pixels) -> Tensor:
    """Return the image embeddings of uint8 [N, H, W, 3]: float32 [N, D]."""
    model: Any = clip.model
    pixels = torch.stack([clip.preprocess(Image.fromarray(image)) for image in images])
    found: Tensor = model.encode_image(pixels)
    return found
