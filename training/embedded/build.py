"""Build the tasks of scenes that are no diffusion: autoencoder, classifier, CLIP model."""

from __future__ import annotations

from training.recipes.schema import Autoencoder, Classifier, Clip, Recipe
from training.run.task import Task


def build_extractor(recipe: Recipe) -> Task:
    """Return the task of a recipe whose objective is one of `EXTRACTORS`."""
    objective = recipe.objective
    # Each of them imports libraries that the others do not need.
    if isinstance(objective, Autoencoder):
        from training.embedded.vae import AutoencoderTask

        return AutoencoderTask(recipe, objective)
    if isinstance(objective, Classifier):
        from training.embedded.classifier import ClassifierTask

        return ClassifierTask(recipe, objective)
    assert isinstance(objective, Clip)
    from training.embedded.clip import ClipTask

    return ClipTask(recipe, objective)
