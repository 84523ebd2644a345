"""Exported checkpoints load as they are, pass the suite, and never damage an older one."""

from __future__ import annotations

import copy
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from pytest_sdbench.base.paths import reference
from pytest_sdbench.cards.card import check_lineage, read_card
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.models.pipeline import load_pipeline
from tests.tiny_checkpoint import make_checkpoint
from training.errors import TrainingError
from training.export.checkpoint import ADAPTER, export_checkpoint, export_scheduler
from training.recipes.load import parse_recipe
from training.recipes.schema import Recipe
from training.students.block_removal import build_student
from training.students.networks import Parts, load_parts

ROOT = Path(__file__).parents[3]


def recipe_for(teacher: Any, **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": "mini",
        "title": "Mini student",
        "teacher": teacher,
        "student": {"remove": "small"},
        "objective": {
            "kind": "distillation",
            "pairing": "bk-sdm",
            "weights": {"task": 1.0, "output": 0.5, "feature": 0.25},
        },
        "data": {"kind": "scenes", "pairs": 128},
        "schedule": {"steps": 30, "batch": 8, "micro_batch": 4},
        "optimizer": {"learning_rate": 1e-3},
        "sources": {"optimizer": "the authors' script"},
        "unstated": {"schedule": "what the budget allowed"},
    }
    return parse_recipe(values | changes)


@pytest.fixture(scope="module")
def parts(pristine_checkpoint: Path) -> Parts:
    return load_parts(str(pristine_checkpoint))


def trained(parts: Parts, remove: Any = "small", **options: Any) -> SimpleNamespace:
    """Make a task whose student differs from every checkpoint on disk."""
    student = build_student(parts.unet, remove, **options)
    with torch.no_grad():
        for number, weight in enumerate(student.parameters()):
            weight += 1e-3 * (number % 5)
    return SimpleNamespace(parts=replace(parts, unet=student))


def export(task: Any, recipe: Recipe, out: Path, **options: Any) -> Path:
    values = {"seen": recipe.images, "hardware": "two CPU cores", "seconds": 90.0} | options
    return export_checkpoint(task, recipe, out.parent / "run", out, **values)


def stored(out: Path, part: str = "unet") -> dict[str, torch.Tensor]:
    name = "model" if part == "text_encoder" else "diffusion_pytorch_model"
    return load_file(out / part / f"{name}.safetensors")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("remove", ["base", "small", "tiny"])
def test_diffusers_loads_the_folder_as_it_is(remove: str, parts: Parts, tmp_path: Path) -> None:
    task = trained(parts, remove)
    out = export(task, recipe_for(str(parts.checkpoint.folder), student={"remove": remove}), tmp_path / "out")
    pipeline = DiffusionPipeline.from_pretrained(out)
    assert isinstance(pipeline, StableDiffusionPipeline)
    assert isinstance(pipeline.scheduler, PNDMScheduler)
    assert pipeline.safety_checker is None
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {torch.float32}
    live = task.parts.unet.state_dict()
    loaded = pipeline.unet.state_dict()
    assert loaded.keys() == live.keys()
    for name, value in loaded.items():
        assert torch.equal(value, live[name].half().float()), name
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("red", num_inference_steps=1, height=64, width=64).images[0].size == (64, 64)


def test_stored_type_is_what_the_recipe_says(parts: Parts, tmp_path: Path) -> None:
    for half, dtype in ((True, torch.float16), (False, torch.float32)):
        out = export(
            trained(parts), recipe_for(str(parts.checkpoint.folder), export={"half": half}), tmp_path / "out"
        )
        for part in ("unet", "text_encoder", "vae"):
            assert {value.dtype for value in stored(out, part).values() if value.is_floating_point()} == {
                dtype
            }
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out", torch_dtype=torch.float16)
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {torch.float16}


def test_the_saved_configuration_is_the_students(parts: Parts, tmp_path: Path) -> None:
    recipe = recipe_for(str(parts.checkpoint.folder), student={"remove": "tiny"})
    out = export(trained(parts, "tiny"), recipe, tmp_path / "out")
    config = json.loads((out / "unet" / "config.json").read_text())
    assert config["down_block_types"] == ["CrossAttnDownBlock2D"] * 3
    assert config["mid_block_type"] is None
    assert config["layers_per_block"] == 1
    assert config["block_out_channels"] == [8, 8, 16]


def test_the_networks_of_the_task_stay_as_they_are(parts: Parts, tmp_path: Path) -> None:
    task = trained(parts)
    task.parts.unet.train()
    before = copy.deepcopy(task.parts.unet.state_dict())
    export(task, recipe_for(str(parts.checkpoint.folder)), tmp_path / "out")
    assert task.parts.unet.training
    for name, value in task.parts.unet.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])


def test_what_was_not_trained_is_the_teachers_own(parts: Parts, tmp_path: Path) -> None:
    # Frozen networks may have been cast while others learned; that must not be what is published.
    cast = replace(trained(parts).parts, vae=copy.deepcopy(parts.vae).bfloat16())
    recipe = recipe_for(str(parts.checkpoint.folder), export={"half": False})
    out = export(SimpleNamespace(parts=cast), recipe, tmp_path / "out")
    for part in ("vae", "text_encoder"):
        theirs = stored(parts.checkpoint.folder, part)
        assert all(torch.equal(value, theirs[name]) for name, value in stored(out, part).items())


def test_no_file_tells_a_path_of_this_machine(parts: Parts, tmp_path: Path) -> None:
    out = export(trained(parts), recipe_for(str(parts.checkpoint.folder)), tmp_path / "out")
    for path in out.rglob("*"):
        if path.suffix in (".json", ".md", ".txt"):
            text = path.read_text()
            assert str(parts.checkpoint.folder) not in text, path
            assert str(tmp_path) not in text, path
            assert "_name_or_path" not in text, path


def test_a_unet_alone_stands_on_its_base(parts: Parts, tmp_path: Path) -> None:
    task = trained(parts)
    recipe = recipe_for(str(parts.checkpoint.folder), export={"unet_only": True, "half": False})
    out = export(task, recipe, tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "unet"]
    card = read_card(out / "README.md")
    pipeline = load_pipeline(resolve(card.checkpoint, near=out))
    for name, value in pipeline.unet.state_dict().items():
        assert torch.equal(value, task.parts.unet.state_dict()[name])
    assert not Path(card.checkpoint["base"]).is_absolute()


def test_a_consistency_unet_brings_its_scheduler(parts: Parts, tmp_path: Path) -> None:
    task = trained(parts, "none", guidance_embedding=8)
    recipe = recipe_for(
        str(parts.checkpoint.folder),
        student={},
        objective={"kind": "consistency", "embedding": 8},
        export={
            "unet_only": True,
            "scheduler": {"class": "LCMScheduler", "config": {"original_inference_steps": 25}},
        },
    )
    out = export(task, recipe, tmp_path / "out")
    unet = UNet2DConditionModel.from_pretrained(out / "unet")
    assert unet.config.time_cond_proj_dim == 8
    scheduler = LCMScheduler.from_pretrained(out / "scheduler")
    assert scheduler.config.original_inference_steps == 25
    assert scheduler.config.beta_start == parts.scheduler.config.beta_start
    assert isinstance(
        load_pipeline(resolve(read_card(out / "README.md").checkpoint, near=out)).scheduler, LCMScheduler
    )


def test_a_trained_text_encoder_is_exported(parts: Parts, tmp_path: Path) -> None:
    encoder = copy.deepcopy(parts.text_encoder)
    with torch.no_grad():
        next(encoder.parameters()).add_(1.0)
    task = SimpleNamespace(parts=replace(parts, text_encoder=encoder))
    objective = {"kind": "prediction", "train_text_encoder": True}
    changes = {"student": {}, "objective": objective}
    folder = str(parts.checkpoint.folder)
    out = export(task, recipe_for(folder, **changes, export={"half": False}), tmp_path / "out")
    loaded = DiffusionPipeline.from_pretrained(out).text_encoder.state_dict()
    assert all(
        torch.equal(value, loaded[name]) for name, value in encoder.state_dict().items() if name in loaded
    )
    with pytest.raises(TrainingError, match=r"export\.unet_only"):
        export(task, recipe_for(folder, **changes, export={"unet_only": True}), tmp_path / "other")


# --- the card --------------------


def test_the_card_verifies_at_once(parts: Parts, pytester: pytest.Pytester) -> None:
    out = export(trained(parts), recipe_for(str(parts.checkpoint.folder)), pytester.path / "mini")
    ModelCard.load(out / "README.md").validate  # noqa: B018  (the call would ask the hub)
    done = pytester.runpytest("--sdbench", "mini/README.md", "-v")
    assert done.ret == 0
    passed = [line for line in done.outlines if "PASSED" in line]
    assert any("test_size" in line for line in passed)
    assert any("test_compute" in line for line in passed)
    assert "FAILED" not in done.stdout.str()


def test_the_card_tells_how_it_was_made(parts: Parts, tmp_path: Path) -> None:
    out = export(trained(parts), recipe_for(str(parts.checkpoint.folder)), tmp_path / "mini", seconds=7200.0)
    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == "diffusers"
    assert card.data.pipeline_tag == "text-to-image"
    for told in (
        "# Mini student",
        "`small`",
        "weights (task 1, output 0.5, feature 0.25)",
        "128 pairs of scenes",
        "- Steps: 30",
        "- Batch: 8",
        "- Images seen: 240",
        "AdamW, constant learning rate 0.001",
        "two CPU cores",
        "2 hours",
        "`optimizer`: the authors' script",
        "`schedule`: what the budget allowed",
        f"torch {torch.__version__.partition('+')[0]}",
    ):
        assert told in card.content, told


def test_use_restrictions_pass_to_the_derivative(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tiny_checkpoint / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n\n# Teacher\n")
    parts = load_parts(str(tiny_checkpoint))
    out = export(trained(parts), recipe_for(str(tiny_checkpoint)), tmp_path / "mini")
    card = ModelCard.load(out / "README.md")
    assert card.data.license == "creativeml-openrail-m"
    assert "use restrictions" in card.text


def test_no_licence_is_made_up(parts: Parts, tmp_path: Path) -> None:
    out = export(trained(parts), recipe_for(str(parts.checkpoint.folder)), tmp_path / "mini")
    card = ModelCard.load(out / "README.md")
    assert card.data.license is None
    assert "Licence: unknown" in card.text


@pytest.mark.skipif(
    not (reference() / "checkpoints" / "scenes-sd" / "unet").is_dir(),
    reason="the embedded teacher is not here",
)
@pytest.mark.parametrize(
    ("scheduler", "layouts", "protocols"),
    [
        ("PNDMScheduler", None, ("scenes-quick", "scenes-5k")),
        ("PNDMScheduler", ["one"], ("scenes-portrait-quick", "scenes-portrait-5k")),
        ("LCMScheduler", None, ("scenes-lcm4-quick", "scenes-lcm4-5k")),
        ("DDIMScheduler", None, ()),
    ],
)
def test_a_student_of_the_embedded_teacher_knows_its_protocols(
    scheduler: str, layouts: Any, protocols: Any, tmp_path: Path
) -> None:
    parts = load_parts("embedded:scenes-sd")
    recipe = recipe_for(
        "embedded:scenes-sd",
        data={"kind": "scenes", "pairs": 128, "layouts": layouts},
        export={"unet_only": True, "scheduler": {"class": scheduler}},
    )
    out = export(trained(parts), recipe, tmp_path / "student")
    card = read_card(out / "README.md")
    check_lineage(card)
    assert card.protocols == protocols
    assert (card.base, card.baseline, card.license) == ("scenes-sd", "scenes-sd", "apache-2.0")
    assert card.checkpoint == {"base": "embedded:scenes-sd", "unet": "./"}


# --- low-rank adapters --------------------


@pytest.fixture
def adapted(parts: Parts) -> Iterator[Parts]:
    peft = pytest.importorskip("peft")
    own = replace(parts, unet=copy.deepcopy(parts.unet), text_encoder=copy.deepcopy(parts.text_encoder))
    torch.manual_seed(0)
    own.unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=5, target_modules=["to_q", "to_v"]))
    own.text_encoder.add_adapter(peft.LoraConfig(r=2, lora_alpha=5, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for network in (own.unet, own.text_encoder):
            for name, weight in network.named_parameters():
                if "lora_B" in name:
                    weight.normal_(0, 0.3)
    return own


def outputs(unet: Any, text_encoder: Any) -> torch.Tensor:
    tokens = torch.arange(77)[None] % 40
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        states = text_encoder.eval()(tokens).last_hidden_state
        result: torch.Tensor = unet.eval()(noise, 500, states).sample
    return result


def test_adapters_load_in_diffusers_and_merge(adapted: Parts, parts: Parts, tmp_path: Path) -> None:
    objective = {
        "kind": "dreambooth",
        "prompt": "a sks heart",
        "class_prompt": "a heart",
        "lora": {"rank": 2, "alpha": 5.0},
    }
    recipe = recipe_for(str(parts.checkpoint.folder), student={}, objective=objective, export={"half": False})
    wanted = outputs(adapted.unet, adapted.text_encoder)
    assert not torch.allclose(wanted, outputs(parts.unet, parts.text_encoder), atol=1e-3)

    out = export(SimpleNamespace(parts=adapted), recipe, tmp_path / "whole")
    merged = DiffusionPipeline.from_pretrained(out)
    torch.testing.assert_close(outputs(merged.unet, merged.text_encoder), wanted, atol=1e-5, rtol=1e-4)

    alone = export(SimpleNamespace(parts=adapted), recipe, tmp_path / "adapter", merge=False)
    assert sorted(path.name for path in alone.iterdir()) == ["README.md", ADAPTER]
    pipeline = StableDiffusionPipeline.from_pretrained(parts.checkpoint.folder, safety_checker=None)
    pipeline.load_lora_weights(alone)
    torch.testing.assert_close(outputs(pipeline.unet, pipeline.text_encoder), wanted, atol=1e-5, rtol=1e-4)
    assert "load_lora_weights" in ModelCard.load(alone / "README.md").text
    assert str(tmp_path).encode() not in (alone / ADAPTER).read_bytes()


# --- what goes wrong --------------------


def test_weights_that_are_not_finite_leave_the_old_checkpoint(parts: Parts, tmp_path: Path) -> None:
    recipe = recipe_for(str(parts.checkpoint.folder))
    out = export(trained(parts), recipe, tmp_path / "out")
    before, broken = content(out), trained(parts)
    with torch.no_grad():
        next(broken.parts.unet.parameters()).view(-1)[0] = 1e6  # finite, but not as float16
    with pytest.raises(TrainingError, match=r"export\.half=false"):
        export(broken, recipe, out)
    assert content(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


FULL = """
import resource, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.training.export import test_checkpoint as test_export
from training.students.networks import load_parts
parts = load_parts({folder!r})
task, recipe = test_export.trained(parts), test_export.recipe_for({folder!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
try:
    test_export.export(task, recipe, Path({out!r}))
except test_export.TrainingError as error:
    print(error)
    raise SystemExit(7)
"""


def test_a_full_disk_leaves_the_old_checkpoint(parts: Parts, tmp_path: Path) -> None:
    folder = str(parts.checkpoint.folder)
    out = export(trained(parts, "base"), recipe_for(folder, student={"remove": "base"}), tmp_path / "out")
    before = content(out)
    code = FULL.format(root=str(ROOT), folder=folder, out=str(out))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert "the disk is full" in done.stdout
    assert content(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_an_export_that_was_killed_while_it_replaced_loses_nothing(parts: Parts, tmp_path: Path) -> None:
    recipe = recipe_for(str(parts.checkpoint.folder))
    out = export(trained(parts), recipe, tmp_path / "out")
    before = content(out)
    out.rename(tmp_path / ".out.old")
    shutil.copytree(parts.checkpoint.folder, tmp_path / ".out.new")
    broken = trained(parts)
    with torch.no_grad():
        next(broken.parts.unet.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError):
        export(broken, recipe, out)
    assert content(out) == before


def test_a_folder_of_anything_else_is_left_alone(parts: Parts, tmp_path: Path) -> None:
    (tmp_path / "holidays").mkdir()
    (tmp_path / "holidays" / "beach.jpg").write_bytes(b"picture")
    with pytest.raises(TrainingError, match="no checkpoint"):
        export(trained(parts), recipe_for(str(parts.checkpoint.folder)), tmp_path / "holidays")
    assert (tmp_path / "holidays" / "beach.jpg").read_bytes() == b"picture"


@pytest.mark.parametrize(
    ("scheduler", "key"),
    [
        ({"class": "PNDMSchedular"}, r"export\.scheduler\.class"),
        ({"class": "UNet2DConditionModel"}, r"export\.scheduler\.class"),
        ({"class": "LCMScheduler", "config": {"beta_begin": 0.1}}, r"export\.scheduler\.config\.beta_begin"),
    ],
)
def test_a_scheduler_that_there_is_none_is_refused(scheduler: Any, key: str, parts: Parts) -> None:
    with pytest.raises(TrainingError, match=key):
        export_scheduler(parts, recipe_for(str(parts.checkpoint.folder), export={"scheduler": scheduler}))


def test_a_task_with_its_own_export_adds_to_the_folder(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "scenes-sd")
    before = content(tmp_path / "scenes-sd")

    def write(folder: Path) -> None:
        (folder / "vae").mkdir()
        (folder / "vae" / "config.json").write_text("{}")

    recipe = recipe_for(str(tmp_path / "scenes-sd"))
    export(SimpleNamespace(export=write), recipe, tmp_path / "scenes-sd")
    after = content(tmp_path / "scenes-sd")
    assert after["vae/config.json"] == b"{}"
    assert [name for name in after if name.startswith("vae/")] == ["vae/config.json"]
    assert {name: value for name, value in after.items() if not name.startswith("vae/")} == {
        name: value for name, value in before.items() if not name.startswith("vae/")
    }


def test_a_task_with_its_own_export_writes_a_new_folder(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights")

    out = export(SimpleNamespace(export=write), recipe_for("embedded:scenes-sd"), tmp_path / "classifier")
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
