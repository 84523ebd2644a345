"""DreamBooth: the subject is new to scenes, class pictures are drawn once, adapters start at nothing."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.family.subject import (
    CLASS_PROMPT,
    IDENTIFIER,
    PICTURES,
    PROMPT,
    PROMPTS,
    main,
    picture,
    pictures,
    shows_subject,
    without_identifier,
)
from benchmarks.family.subject_scores import mean_cosine, score_subject
from pytest_sdbench.base.paths import reference
from pytest_sdbench.features.classifier import load_classifier
from pytest_sdbench.features.clip import load_clip
from pytest_sdbench.protocols import scenes
from tests.tiny_checkpoint import make_checkpoint
from tests.training.helpers import recipe_of
from training.dry_run.networks import adapter_parameters
from training.errors import TrainingError
from training.objectives import dreambooth_pictures as dreambooth
from training.objectives.dreambooth_pictures import add_adapters, class_pairs, draw_class, subject_pairs
from training.recipes.schema import Lora, Recipe
from training.run.state import identity
from training.students.networks import Parts
from training.students.tokenizer import build_tokenizer

needs_extractors = pytest.mark.skipif(
    not (reference() / "checkpoints" / "scenes-clip").is_dir(), reason="the extractors of scenes are not here"
)


@pytest.fixture
def subject(tmp_path: Path) -> Path:
    main([str(tmp_path / "subject")])
    return tmp_path / "subject"


def recipe_for(parts: Parts, data: Any, seed: int = 0, **objective: Any) -> Recipe:
    prompts = {"prompt": PROMPT, "class_prompt": CLASS_PROMPT, "class_images": 3}
    return recipe_of(
        parts.checkpoint.folder,
        student={},
        objective={"kind": "dreambooth", **prompts, **objective},
        data=data,
        schedule={"steps": 2, "batch": 2, "micro_batch": 2, "seed": seed},
        watch={"sampling_steps": 1, "guidance": 1.0},
    )


# --- the subject --------------------


def test_the_identifier_is_one_token_that_no_caption_has() -> None:
    tokenizer = build_tokenizer()
    assert len(tokenizer(IDENTIFIER).input_ids) == 3  # with start and end
    token = tokenizer(IDENTIFIER).input_ids[1]
    told = scenes.captions(range(2000))
    assert not any(token in ids for ids in tokenizer(told).input_ids)
    assert len(tokenizer(PROMPT).input_ids) == len(tokenizer(CLASS_PROMPT).input_ids) + 1


@pytest.mark.slow
def test_the_subject_is_in_its_pictures_and_in_no_scene() -> None:
    assert shows_subject(pictures()).all()
    assert shows_subject(scenes.render_batch(range(10_000_000, 10_003_000))).mean() < 0.002
    # The two halves exchanged are another thing.
    assert not shows_subject(np.ascontiguousarray(pictures()[:, :, ::-1])).any()


def test_the_subject_is_drawn_as_scenes_are() -> None:
    """Away from the object a picture of it is the background that scenes draw."""
    scene = next(
        s for s in map(scenes.scene, range(3000)) if s.background.name == "beige" and s.layout == "one"
    )
    corner = scenes.render(scene)[:4, :4]
    assert np.abs(pictures()[0][:4, :4].astype(int) - corner).max() <= 1


def test_prompts_are_judged_by_words_that_clip_knows() -> None:
    known = {word for told in scenes.captions(range(3000)) for word in told.replace(",", "").split()}
    for prompt in PROMPTS:
        assert IDENTIFIER in prompt.split()
        assert set(without_identifier(prompt).split()) <= known


# --- pictures --------------------


def test_every_picture_of_the_subject_has_the_prompt(parts: Parts, subject: Path, tmp_path: Path) -> None:
    recipe = recipe_for(parts, {"kind": "folder", "path": str(subject)})
    (subject / "metadata.csv").write_text("file_name,text\n0.png,something else\n")
    pairs = subject_pairs(recipe, parts, tmp_path / "cache", say=lambda _: None)
    assert len(pairs) == 5
    taken = pairs.take([0, 4])
    wanted = parts.tokenizer(PROMPT, padding="max_length", max_length=77).input_ids
    assert taken.tokens.tolist() == [wanted, wanted]
    assert taken.pixels is not None
    first = torch.from_numpy(np.array(Image.open(subject / "0.png"))).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(taken.pixels[0], first)


def test_pictures_can_be_encoded_once(parts: Parts, subject: Path, tmp_path: Path) -> None:
    recipe = recipe_for(parts, {"kind": "folder", "path": str(subject), "cache": True})
    taken = subject_pairs(recipe, parts, tmp_path / "cache", say=lambda _: None).take([1])
    with torch.no_grad():
        pixels = torch.from_numpy(pictures()[1]).permute(2, 0, 1)[None] / 127.5 - 1
        mean = parts.vae.encode(pixels).latent_dist.mean
    assert taken.mean is not None
    torch.testing.assert_close(taken.mean.float(), mean, atol=2e-3, rtol=2e-3)


def test_as_many_pictures_as_the_recipe_says(parts: Parts, subject: Path, tmp_path: Path) -> None:
    recipe = recipe_for(parts, {"kind": "folder", "path": str(subject), "pairs": 3})
    assert len(subject_pairs(recipe, parts, tmp_path / "cache", say=lambda _: None)) == 3


def test_a_subject_without_a_folder_is_refused(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"data\.kind.*scenes.*data\.path=FOLDER"):
        subject_pairs(recipe_for(parts, {"kind": "scenes"}), parts, tmp_path)


def test_class_pictures_are_drawn_once_and_only_missing_ones_again(
    parts: Parts, subject: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for(parts, {"kind": "folder", "path": str(subject)})
    drawn: list[int] = []
    real = dreambooth.draw

    def counting(parts: Parts, prompts: Any, **options: Any) -> Any:
        drawn.append(len(prompts))
        return real(parts, prompts, **options)

    monkeypatch.setattr(dreambooth, "draw", counting)

    def take() -> torch.Tensor:
        pairs = class_pairs(recipe, parts, tmp_path / "run", tmp_path / "cache", say=lambda _: None)
        assert pairs is not None
        pixels = pairs.take([0, 1, 2]).pixels
        assert pixels is not None
        return pixels

    first = take()
    assert drawn == [3]
    files = sorted((tmp_path / "run").rglob("*.png"))
    assert len(files) == 3
    files[1].write_bytes(files[1].read_bytes()[:40])  # as a kill may leave it on another file system
    files[2].unlink()
    again = take()
    assert drawn == [3, 2]
    # Batches differ, so that arithmetic may round differently.
    assert (again - first).abs().max() <= 2.01 / 127.5
    take()
    assert drawn == [3, 2]
    assert not torch.equal(first[0], first[1])


def test_a_run_does_not_go_on_with_other_class_pictures(parts: Parts) -> None:
    recipe = recipe_for(parts, {"kind": "folder", "path": "pictures"})

    def watched(**changes: Any) -> str:
        return identity(recipe.model_copy(update={"watch": recipe.watch.model_copy(update=changes)}))

    assert len({watched(), watched(guidance=3.0), watched(sampling_steps=2)}) == 3
    assert watched(validation_images=8) == watched()


def test_other_class_pictures_lie_elsewhere(parts: Parts, tmp_path: Path) -> None:
    found = {
        draw_class(
            recipe_for(parts, {"kind": "scenes"}, seed, **changes), parts, tmp_path, say=lambda _: None
        )
        for seed, changes in ((0, {}), (0, {"class_prompt": "a star"}), (1, {}))
    }
    assert len(found) == 3


@pytest.mark.slow
def test_class_pictures_are_of_the_model_of_the_recipe(parts: Parts, subject: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", seed=3)
    data = {"kind": "folder", "path": str(subject)}
    found = []
    for model in (None, str(other)):
        recipe = recipe_for(parts, data, class_model=model)
        pairs = class_pairs(recipe, parts, tmp_path / "run", tmp_path / "cache", say=lambda _: None)
        assert pairs is not None
        found.append(pairs.take([0]).pixels)
    assert not torch.equal(found[0], found[1])


def test_pictures_that_share_no_batch_are_refused_before_any_is_drawn(
    parts: Parts, subject: Path, tmp_path: Path
) -> None:
    for file in subject.glob("*.png"):
        Image.open(file).resize((48, 40)).save(file)
    recipe = recipe_for(parts, {"kind": "folder", "path": str(subject)})
    with pytest.raises(TrainingError, match=r"data\.resolution: .*'48x40'.*Give data\.resolution=64"):
        class_pairs(recipe, parts, tmp_path / "run", tmp_path / "cache")
    assert not (tmp_path / "run").exists()


def test_without_prior_preservation_nothing_is_drawn(parts: Parts, subject: Path, tmp_path: Path) -> None:
    recipe = recipe_for(parts, {"kind": "folder", "path": str(subject)}, class_images=0, prior_weight=0.0)
    assert class_pairs(recipe, parts, tmp_path / "run", tmp_path / "cache") is None
    assert not (tmp_path / "run").exists()


# --- adapters --------------------


def test_adapters_start_at_nothing_and_alone_learn(parts: Parts) -> None:
    pytest.importorskip("peft")
    own = replace(parts, unet=copy.deepcopy(parts.unet), text_encoder=copy.deepcopy(parts.text_encoder))
    before = torch.get_rng_state()
    add_adapters(own, Lora(rank=2, alpha=3.0), text_encoder=True)
    assert torch.equal(torch.get_rng_state(), before)
    noise, states = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 16)
    with torch.no_grad():
        wanted = parts.unet(noise, 10, states).sample
        torch.testing.assert_close(own.unet.eval()(noise, 10, states).sample, wanted)
    for name, network in (("unet", own.unet), ("text_encoder", own.text_encoder)):
        learns = {key for key, weight in network.named_parameters() if weight.requires_grad}
        assert learns
        assert all("lora_" in key for key in learns)
        # The plan of a run counts them without building any.
        count = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
        assert count == adapter_parameters(getattr(parts, name), name, 2)


# --- scores --------------------


def test_mean_cosine_is_that_of_all_pairs() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    half = 0.5**0.5
    assert mean_cosine(rows) == pytest.approx((0 + half + half) / 3)
    assert mean_cosine(rows, torch.tensor([[5.0, 0.0]])) == pytest.approx((1 + 0 + half) / 3)
    with pytest.raises(ValueError, match="two rows"):
        mean_cosine(rows[:1])


@needs_extractors
def test_scores_tell_the_subject_the_place_and_the_class() -> None:
    """Real pictures stand for what a perfect model draws, one that ignores, and one that forgot its class."""
    models: Any = {"classifier": load_classifier(), "clip": load_clip("local:scenes-clip")}
    real = pictures()
    places = {
        "beige": "on a beige background",
        "pink": "on a pink background",
        "meadow": "in a meadow",
        "dawn": "at dawn",
        "brown": "on a brown background",
    }
    prompts = [f"a {IDENTIFIER} flower {told}" for told in places.values()]
    drawn = np.stack([picture(*each, background=name) for each, name in zip(PICTURES, places, strict=True)])
    flowers = [
        s for s in map(scenes.scene, range(20_000)) if s.layout == "one" and s.objects[0].name == "flower"
    ]
    of_class = np.stack([scenes.render(scene) for scene in flowers[:16]])
    perfect = score_subject(drawn, prompts, of_class, real, **models)
    ignorant = score_subject(of_class[:5], prompts, of_class, real, **models)
    astray = score_subject(drawn, prompts[1:] + prompts[:1], of_class, real, **models)
    forgotten = score_subject(drawn, prompts, real, real, **models)
    assert (perfect["seen"], ignorant["seen"]) == (1.0, 0.0)
    assert perfect["subject_by_features"] > ignorant["subject_by_features"]
    assert perfect["subject_by_clip"] > ignorant["subject_by_clip"]
    assert perfect["prompt_by_clip"] > astray["prompt_by_clip"]
    assert (perfect["prior_seen"], forgotten["prior_seen"]) == (0.0, 1.0)
    assert perfect["prior_leak"] < forgotten["prior_leak"]
    assert perfect["prior_diversity"] > forgotten["prior_diversity"]
