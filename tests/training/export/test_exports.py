"""What training exports is what its users load."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image

from pytest_sdbench.base.paths import reference
from pytest_sdbench.features import classifier
from pytest_sdbench.protocols import scenes
from training.build import build_task
from training.embedded import vae
from training.recipes.load import load_recipe
from training.run.loop import train
from training.run.processes import start
from training.run.randomness import Dice
from training.students.scratch import build_scratch
from training.students.tokenizer import CONTEXT, MERGES, build_tokenizer, learn_merges, save_tokenizer

SHIPPED = reference() / "checkpoints"
needs_weights = pytest.mark.skipif(
    not (SHIPPED / "scenes-sd" / "unet" / "diffusion_pytorch_model.safetensors").is_file(),
    reason="the embedded teacher is not trained: see training/",
)


@pytest.fixture(scope="module")
def pipeline():
    loaded = StableDiffusionPipeline.from_pretrained(SHIPPED / "scenes-sd")
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_tokenizer_is_small(tmp_path):
    tokenizer = build_tokenizer()
    assert len(tokenizer) < 2000
    longest = max(len(ids) for ids in tokenizer(scenes.captions(range(3000))).input_ids)
    assert longest <= CONTEXT
    save_tokenizer(tokenizer, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"tokenizer.json", "vocab.json", "merges.txt"}
    assert (tmp_path / "merges.txt").read_text() == MERGES.read_text()
    tokenizer("a star", padding="max_length", truncation=True)
    save_tokenizer(tokenizer, tmp_path / "used")
    assert (tmp_path / "used" / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def test_every_word_of_the_captions_is_one_token():
    tokenizer = build_tokenizer()
    words = {word.strip(",") for caption in scenes.captions(range(3000)) for word in caption.split()}
    assert {word for word in words if len(tokenizer(word).input_ids) != 3} == set()


def test_merges_can_be_learned_again():
    assert {"".join(pair) for pair in learn_merges(2000)} >= {"umbrella</w>", "underneath</w>"}


def trained(name, folder, *overrides):
    short = ["schedule.steps=2", "schedule.batch=2", "schedule.micro_batch=2", "optimizer.warmup_steps=0"]
    recipe = load_recipe(name, [*short, *overrides])
    accelerator = start(recipe, folder, "cpu")
    task = build_task(recipe, folder=folder, accelerator=accelerator)
    train(task, recipe, folder, accelerator, say=lambda _line: None)
    return task


@pytest.mark.slow
def test_autoencoder_learns_and_exports(tmp_path):
    task = trained("scenes-vae", tmp_path / "run", "objective.network.block_out_channels=[8, 8, 8]")
    task.export(tmp_path)
    loaded = AutoencoderKL.from_pretrained(tmp_path / "vae")
    assert loaded.config.scaling_factor == 1.0
    assert np.isfinite(vae.psnr(loaded, scenes.EVALUATION[:2]))


@torch.no_grad()
def test_latents_are_standardised_and_pictures_stay():
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    network = AutoencoderKL(**blocks, block_out_channels=[8, 8], norm_num_groups=4, latent_channels=3)
    network = network.double().eval()
    pictures = torch.rand(16, 3, 16, 16, dtype=torch.float64) * 2 - 1
    before = network.encode(pictures).latent_dist
    drawn = network.decode(before.mean + before.std).sample
    vae.standardise(network, before.mean)
    after = network.encode(pictures).latent_dist
    torch.testing.assert_close(network.decode(after.mean + after.std).sample, drawn)
    torch.testing.assert_close(after.mean.mean(dim=(0, 2, 3)), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(after.mean.std(dim=(0, 2, 3)), torch.ones(3, dtype=torch.float64))


@pytest.mark.slow
def test_classifier_learns_and_exports(tmp_path):
    trained("scenes-classifier", tmp_path / "run").export(tmp_path / "out")
    loaded = classifier.load_classifier(tmp_path / "out")
    features = loaded(torch.from_numpy(scenes.render_batch(scenes.TRAINING[:64])).permute(0, 3, 1, 2))[
        "features"
    ]
    assert features.shape == (64, 96)
    assert 0.5 < float(features.var(dim=0).mean()) < 2  # unit variance, over other scenes


def test_clip_exports_what_open_clip_loads(tmp_path):
    task = trained("scenes-clip", tmp_path / "run")
    # open_clip finds the tokenizer in a folder of the model's name.
    task.export(tmp_path / "scenes-clip")
    name = f"local-dir:{tmp_path / 'scenes-clip'}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    tokens = open_clip.get_tokenizer(name)(["a large red cat face on a beach"])
    assert tokens.shape == (1, CONTEXT)
    picture = preprocess(Image.fromarray(scenes.render(scenes.scene(0))))
    assert picture.shape == (3, 64, 64)
    saved = task.clip.eval().half().float()
    torch.testing.assert_close(
        model.eval().encode_text(tokens), saved.encode_text(tokens), rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_an_autoencoder_alone_starts_a_teacher(tmp_path):
    trained("scenes-vae", tmp_path / "run", "objective.network.block_out_channels=[8, 8, 8]").export(
        tmp_path / "pictures"
    )
    parts = build_scratch(load_recipe("scenes-objects", [f"student.networks.vae={tmp_path / 'pictures'}"]))
    assert parts.vae.config.block_out_channels == [8, 8, 8]
    assert {weight.dtype for weight in parts.vae.parameters()} == {torch.float32}


def test_squares_are_cut_out_of_their_pictures():
    pictures = torch.randn(3, 3, 8, 8)
    cut = vae.squares(pictures, 5, Dice(0, 0, 3, 0, 3))
    for picture, square in zip(pictures, cut, strict=True):
        places = [picture[:, y : y + 5, x : x + 5] for y in range(4) for x in range(4)]
        assert sum(bool((place == square).all()) for place in places) == 1


@needs_weights
def test_shipped_teacher_has_the_topology_and_the_budget(pipeline):
    assert sum(weight.numel() for weight in pipeline.unet.parameters()) <= 5_000_000
    config = pipeline.unet.config
    assert tuple(config.down_block_types) == (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D")
    assert tuple(config.up_block_types) == ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3)
    assert (config.mid_block_type, config.layers_per_block) == ("UNetMidBlock2DCrossAttn", 2)
    assert pipeline.vae_scale_factor == 4
    assert {network.dtype for network in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {
        torch.float32
    }
    assert pipeline.tokenizer.get_vocab() == build_tokenizer().get_vocab()


@needs_weights
def test_shipped_teacher_samples(pipeline):
    generator = torch.Generator().manual_seed(0)
    images = pipeline(
        "a large red cat face on a beach", num_inference_steps=2, generator=generator, output_type="np"
    ).images
    assert images.shape == (1, 64, 64, 3)
    assert np.isfinite(images).all()


@needs_weights
def test_shipped_vae_is_crisp(pipeline):
    assert vae.psnr(pipeline.vae, scenes.EVALUATION[-32:]) >= 30


@needs_weights
def test_shipped_clip_tells_right_from_nearly_right():
    from training.embedded.clip import near_miss_accuracy

    assert near_miss_accuracy(SHIPPED / "scenes-clip", scenes.EVALUATION[-64:]) >= 0.85


def test_checkpoints_fit_the_budget():
    total = sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file())
    assert total <= 48 * 10**6
