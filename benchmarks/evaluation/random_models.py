"""Write models with random weights in the form of published ones: speed needs no others.

The full size is Stable Diffusion v1.4, which reads captions as the family of scenes does; where the
extractors of a protocol are not on the machine either, they are written with random weights too. Scores are
then meaningless, times are not.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import open_clip
import torch

from benchmarks.evaluation.memory import moments, write_prompts
from benchmarks.training.scenario import NAMES, random_parts
from pytest_sdbench.base.errors import Unavailable
from pytest_sdbench.base.files import sha256_of
from pytest_sdbench.features import inception
from pytest_sdbench.features.clip import LOCAL, NAMED, locate_clip
from pytest_sdbench.models.checkpoint import Checkpoint
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.protocol import Protocol
from training.students.tokenizer import build_tokenizer


def write_checkpoint(folder: Path, size: str, *, dtype: str = "float32") -> Checkpoint:
    """Write a whole checkpoint with random weights, in diffusers layout."""
    from diffusers import StableDiffusionPipeline

    tokenizer = build_tokenizer()
    tokenizer.model_max_length = 77
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    parts = random_parts(size, vocab_size=len(tokenizer), **ends)
    pipeline = StableDiffusionPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=tokenizer,
        unet=parts.unet,
        scheduler=parts.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=getattr(torch, dtype))
    pipeline.save_pretrained(folder)
    return Checkpoint(f"random weights, {NAMES[size]}", folder)


def complete(
    protocol: Protocol, folder: Path, data_root: Path | None
) -> tuple[Protocol, Path, str, str | None]:
    """Return a protocol with everything it needs, the data root that has it, and what in it is made up.

    Prompts, reference statistics, Inception and the CLIP model are each taken where they are, else written
    into `folder`. Last comes the checksum of made-up Inception weights: the published one is expected else.
    """
    content: dict[str, Any] = protocol.model_dump(mode="json", exclude={"name", "path"})
    absent: list[str] = []
    made_up: str | None = None
    root = folder / "data"
    root.mkdir(parents=True, exist_ok=True)
    given = data_root or root
    prompts = given / content["prompts"]["file"]
    if prompts.is_file():
        content["prompts"]["file"] = str(prompts.resolve())
    else:
        absent.append("prompts")
        content["prompts"] |= write_prompts(root / "captions.csv", protocol.n)
    for spec in content["metrics"].values():
        spec.pop("metric")
        if "statistics" in spec:
            real = given / spec["statistics"]["file"]
            if not real.is_file():
                absent.append("reference statistics")
                real = root / "real.npz"
                mu, sigma = moments(inception.WIDTH, seed=1)
                np.savez(real, mu=mu, sigma=sigma)
            spec["statistics"]["file"] = str(real.resolve())
    try:
        weights = inception.find_weights(data_root)
        (root / inception.FILES[0]).symlink_to(weights.resolve())
    except Unavailable:
        absent.append("Inception")
        write_inception(root / inception.FILES[0])
        made_up = sha256_of(root / inception.FILES[0])
    model = content["metrics"]["clip_score"]["model"]
    try:
        locate_clip(model)
    except Unavailable:
        absent.append("CLIP model")
        written = write_clip(root / "clip", model.removeprefix(NAMED).rpartition("/")[0])
        content["metrics"]["clip_score"]["model"] = f"{LOCAL}{written}"
    path = root / f"{protocol.name}.yaml"
    path.write_text(json.dumps(content), encoding="utf-8")
    return load_protocol(path), root, f"made up: {', '.join(absent)}" if absent else "", made_up


def write_inception(path: Path) -> Path:
    """Write weights for Inception that are random, of ordinary size."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with torch.random.fork_rng(devices=[]), patch.object(FeatureExtractorInceptionV3, "load_state_dict"):
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["logits_unbiased"], feature_extractor_weights_path=empty
        )
    torch.save(network.state_dict(), path)
    return path


def write_clip(folder: Path, model: str) -> Path:
    """Write an open_clip model with random weights in open_clip's local form."""
    from safetensors.torch import save_file

    config = open_clip.get_model_config(model)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {}}), encoding="utf-8"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = open_clip.create_model(model)
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder
