"""Exported checkpoints load as they are, pass the suite, and never damage an older one."""

from __future__ import annotations

import copy
import json
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
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
from tests.training.helpers import files_no_longer_than, recipe_of
from training.errors import TrainingError
from training.export.card import write_card
from training.export.checkpoint import ADAPTER, export_checkpoint, export_scheduler
from training.export.facts import Run
from training.export.samples import sampling_scheduler
from training.recipes.load import load_recipe
from training.recipes.schema import Recipe
from training.students.block_removal import build_student
from training.students.networks import Parts, load_parts
from training.students.scratch import sd_v1_scheduler

SCENES = {"kind": "scenes", "pairs": 128}


def trained(parts: Parts, remove: Any = "small", **options: Any) -> SimpleNamespace:
    """Make a task whose student differs from every checkpoint on disk."""
    student = build_student(parts.unet, remove, **options)
    with torch.no_grad():
        for number, weight in enumerate(student.parameters()):
            weight += 1e-3 * (number % 5)
    return SimpleNamespace(parts=replace(parts, unet=student.train()))


def export(task: Any, recipe: Recipe, out: Path, **options: Any) -> Path:
    values = {
        "seen": recipe.images,
        "told": {"hardware": "two CPU cores", "libraries": "torch 2.9.0"},
        "seconds": 7200.0,
    } | options
    return export_checkpoint(task, recipe, out.parent / "run", out, **values)


def stored(out: Path, part: str = "unet") -> dict[str, torch.Tensor]:
    name = "model" if part == "text_encoder" else "diffusion_pytorch_model"
    return load_file(out / part / f"{name}.safetensors")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


Exported = Callable[[str], tuple[SimpleNamespace, Path]]


@pytest.fixture(scope="module")
def exported(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Return a function that exports a student once: its task, and the folder, which no test changes."""

    @cache
    def of(remove: str) -> tuple[SimpleNamespace, Path]:
        task, folder = trained(parts, remove), tmp_path_factory.mktemp("exported")
        recipe = recipe_of(
            parts.checkpoint.folder,
            title="Mini student",
            student={"remove": remove},
            objective={
                "kind": "distillation",
                "pairing": "bk-sdm",
                "weights": {"task": 1.0, "output": 0.5, "feature": 0.25},
            },
            data=SCENES,
            schedule={"steps": 30, "batch": 8, "micro_batch": 4},
            sources={"optimizer": "the authors' script"},
            unstated={"schedule": "what the budget allowed"},
        )
        return task, export(task, recipe, folder / "mini")

    return of


@pytest.mark.parametrize(
    "remove", ["small", *(pytest.param(name, marks=pytest.mark.slow) for name in ("base", "tiny"))]
)
def test_diffusers_loads_the_folder_as_it_is(remove: str, exported: Exported) -> None:
    task, out = exported(remove)
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


def test_the_networks_of_the_task_stay_as_they_are(exported: Exported, parts: Parts) -> None:
    unet, twin = exported("small")[0].parts.unet, trained(parts).parts.unet
    assert unet.training
    torch.testing.assert_close(unet.state_dict(), twin.state_dict(), rtol=0, atol=0)


def test_the_saved_configuration_is_the_students(exported: Exported) -> None:
    config = json.loads((exported("tiny")[1] / "unet" / "config.json").read_text())
    assert config["down_block_types"] == ["CrossAttnDownBlock2D"] * 3
    assert config["mid_block_type"] is None
    assert config["layers_per_block"] == 1
    assert config["block_out_channels"] == [8, 8, 16]


@pytest.mark.slow
def test_stored_type_is_what_the_recipe_says(exported: Exported, parts: Parts, tmp_path: Path) -> None:
    # Frozen networks may have been cast while others learned; that must not be what is published.
    cast = replace(trained(parts).parts, vae=copy.deepcopy(parts.vae).bfloat16())
    recipe = recipe_of(parts.checkpoint.folder, export={"half": False})
    full = export(SimpleNamespace(parts=cast), recipe, tmp_path / "out")
    for out, dtype in ((exported("small")[1], torch.float16), (full, torch.float32)):
        for part in ("unet", "text_encoder", "vae"):
            types = {value.dtype for value in stored(out, part).values() if value.is_floating_point()}
            assert types == {dtype}
    for part in ("vae", "text_encoder"):
        theirs = stored(parts.checkpoint.folder, part)
        assert all(torch.equal(value, theirs[name]) for name, value in stored(full, part).items())
    pipeline = DiffusionPipeline.from_pretrained(full, torch_dtype=torch.float16)
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {torch.float16}


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no rights of a group")
def test_who_may_read_new_files_may_read_the_checkpoint(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    _, folder = exported("small")
    rights = {stat.filemode(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}
    assert rights == {stat.filemode((tmp_path / "new").stat().st_mode)}


def test_no_file_tells_a_path_of_this_machine(exported: Exported, parts: Parts) -> None:
    _, out = exported("small")
    for path in out.rglob("*"):
        if path.suffix in (".json", ".md", ".txt"):
            text = path.read_text()
            for private in (str(parts.checkpoint.folder), str(out.parent), "_name_or_path"):
                assert private not in text, path


@pytest.mark.slow
def test_a_unet_alone_stands_on_its_base(parts: Parts, tmp_path: Path) -> None:
    task = trained(parts)
    recipe = recipe_of(parts.checkpoint.folder, export={"unet_only": True, "half": False})
    out = export(task, recipe, tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "unet"]
    card = read_card(out / "README.md")
    pipeline = load_pipeline(resolve(card.checkpoint, near=out))
    for name, value in pipeline.unet.state_dict().items():
        assert torch.equal(value, task.parts.unet.state_dict()[name])
    assert not Path(card.checkpoint["base"]).is_absolute()


@pytest.mark.slow
def test_a_consistency_unet_brings_its_scheduler(parts: Parts, tmp_path: Path) -> None:
    task = trained(parts, "none", guidance_embedding=8)
    scheduler = {"class": "LCMScheduler", "config": {"original_inference_steps": 25}}
    recipe = recipe_of(
        parts.checkpoint.folder,
        student={},
        objective={"kind": "consistency", "embedding": 8},
        export={"unet_only": True, "scheduler": scheduler},
    )
    out = export(task, recipe, tmp_path / "out")
    assert UNet2DConditionModel.from_pretrained(out / "unet").config.time_cond_proj_dim == 8
    config = LCMScheduler.from_pretrained(out / "scheduler").config
    assert config.original_inference_steps == 25
    assert config.beta_start == parts.scheduler.config.beta_start
    pipeline = load_pipeline(resolve(read_card(out / "README.md").checkpoint, near=out))
    assert isinstance(pipeline.scheduler, LCMScheduler)


@pytest.mark.slow
def test_a_trained_text_encoder_is_exported(parts: Parts, tmp_path: Path) -> None:
    encoder = copy.deepcopy(parts.text_encoder)
    with torch.no_grad():
        next(encoder.parameters()).add_(1.0)
    task = SimpleNamespace(parts=replace(parts, text_encoder=encoder))
    objective = {"kind": "prediction", "train_text_encoder": True}
    data = SCENES | {"resolution": 64}
    changes: Any = {"student": {}, "objective": objective, "data": data}
    folder = parts.checkpoint.folder
    out = export(task, recipe_of(folder, **changes, export={"half": False}), tmp_path / "out")
    loaded = DiffusionPipeline.from_pretrained(out).text_encoder.state_dict()
    assert all(
        torch.equal(value, loaded[name]) for name, value in encoder.state_dict().items() if name in loaded
    )
    with pytest.raises(TrainingError, match=r"export\.unet_only"):
        export(task, recipe_of(folder, **changes, export={"unet_only": True}), tmp_path / "other")


# --- the card --------------------


def test_the_card_verifies_at_once(exported: Exported, pytester: pytest.Pytester) -> None:
    out = shutil.copytree(exported("small")[1], pytester.path / "mini")
    ModelCard.load(out / "README.md").validate  # noqa: B018  (the call would ask the hub)
    done = pytester.runpytest("--sdbench", "mini/README.md", "-v")
    assert done.ret == 0
    done.stdout.fnmatch_lines_random(["*test_size*PASSED*", "*test_compute*PASSED*"])
    done.stdout.no_fnmatch_line("*FAILED*")


def test_the_card_tells_how_it_was_made_and_makes_up_no_licence(exported: Exported) -> None:
    card = ModelCard.load(exported("small")[1] / "README.md")
    assert card.data.library_name == "diffusers"
    assert card.data.pipeline_tag == "text-to-image"
    assert card.data.license is None
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
        "Licence: unknown",
        "- Libraries: torch 2.9.0\n",
    ):
        assert told in card.content, told


def told(parts: Parts, tmp_path: Path, recipe: Recipe) -> str:
    """Return the card of a recipe's export, without its front matter."""
    out = tmp_path / "mini"
    shutil.copytree(parts.checkpoint.folder, out)
    return ModelCard.load(
        write_card(out, recipe, Run(tmp_path, 8, {}, None), name="mini", near=out, parts=parts)
    ).text


@pytest.mark.parametrize(
    ("weights", "sources"),
    [
        ((1.0, 1.0, 1.0), "the noise, the teacher's predictions and the teacher's features"),
        ((1.0, 0.5, 0.0), "the noise and the teacher's predictions"),
        ((0.0, 0.0, 1.0), "the teacher's features"),
    ],
)
def test_a_card_tells_what_counted(weights: Any, sources: str, parts: Parts, tmp_path: Path) -> None:
    named = dict(zip(("task", "output", "feature"), weights, strict=True))
    objective = {"kind": "distillation", "pairing": "bk-sdm", "weights": named}
    recipe = recipe_of(parts.checkpoint.folder, objective=objective)
    assert f"it learned from {sources}." in told(parts, tmp_path, recipe)


@pytest.mark.parametrize("prior", [0.0, 1.0])
def test_a_card_of_a_subject_calls_it(prior: float, parts: Parts, tmp_path: Path) -> None:
    objective = {
        "kind": "dreambooth",
        "prompt": "a v backpack",
        "class_prompt": "a backpack",
        "prior_weight": prior,
    }
    recipe = recipe_of(
        parts.checkpoint.folder,
        student={},
        objective={**objective, "prior_weight": prior},
        data={"kind": "folder", "path": "pictures"},
        watch={"prompts": ["a sks dog in the jungle"]},
    )
    card = told(parts, tmp_path, recipe)
    assert 'pipeline("a v backpack"' in card
    assert ("keeping the class" in card) == bool(prior)


def test_a_card_tells_random_weights(parts: Parts, tmp_path: Path) -> None:
    objective = {"kind": "prediction"}
    recipe = recipe_of(parts.checkpoint.folder, student={"init": "random"}, objective=objective)
    card = told(parts, tmp_path, recipe)
    assert "- Started from: random weights" in card
    assert "ine-tuned" not in card


@pytest.mark.parametrize("override", [(), ("schedule.steps=7",)])
def test_only_a_shipped_recipe_as_it_is_rebuilds_a_checkpoint(
    override: Any, parts: Parts, tmp_path: Path
) -> None:
    recipe = load_recipe("bk-sdm-small", override)
    card = told(parts, tmp_path, recipe)
    assert ("`python -m training bk-sdm-small` rebuilds it" in card) == (not override)
    assert ("`schedule.steps`: set on the command line" in card) == bool(override)


def test_a_recipe_of_ones_own_named_as_a_shipped_one_rebuilds_nothing(parts: Parts, tmp_path: Path) -> None:
    recipe = recipe_of(parts.checkpoint.folder, name="bk-sdm-small")
    assert "It was made by the recipe `bk-sdm-small`." in told(parts, tmp_path, recipe)


@pytest.mark.slow
def test_use_restrictions_pass_to_the_derivative(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tiny_checkpoint / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n\n# Teacher\n")
    out = export(trained(load_parts(str(tiny_checkpoint))), recipe_of(tiny_checkpoint), tmp_path / "mini")
    card = ModelCard.load(out / "README.md")
    assert card.data.license == "creativeml-openrail-m"
    assert "use restrictions" in card.text


@pytest.mark.skipif(
    not (reference() / "checkpoints" / "scenes-sd" / "unet").is_dir(),
    reason="the embedded teacher is not here",
)
@pytest.mark.parametrize(
    ("scheduler", "domain", "protocols"),
    [
        ("PNDMScheduler", "all", ("scenes-quick", "scenes-fidelity", "scenes-5k")),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("PNDMScheduler", "faces", ("scenes-portrait-quick", "scenes-portrait-5k")),
                ("LCMScheduler", "all", ("scenes-lcm4-quick", "scenes-lcm4-5k")),
                ("DDIMScheduler", "all", ()),
            )
        ),
    ],
)
def test_an_embedded_teachers_student_knows_protocols(
    scheduler: str, domain: str, protocols: Any, tmp_path: Path
) -> None:
    parts = load_parts("embedded:scenes-sd")
    recipe = recipe_of(
        "embedded:scenes-sd",
        data=SCENES | {"domain": domain},
        export={"unet_only": True, "scheduler": {"class": scheduler}},
    )
    out = export(trained(parts), recipe, tmp_path / "student")
    card = read_card(out / "README.md")
    check_lineage(card)
    assert card.protocols == protocols
    assert (card.base, card.baseline, card.license) == ("scenes-sd", "scenes-sd", "apache-2.0")
    assert card.checkpoint == {"base": "embedded:scenes-sd", "unet": "./"}


def test_an_exported_card_of_full_size_names_the_protocol_that_fits(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "full", unet={"sample_size": 64})
    recipe = recipe_of(folder)
    run = Run(tmp_path, 8, {}, None)
    card = read_card(write_card(folder, recipe, run, name="full", near=folder, parts=load_parts(str(folder))))
    assert card.protocols == ("coco30k-bksdm",)


# --- low-rank adapters --------------------


@pytest.fixture
def adapted(parts: Parts) -> Parts:
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


@pytest.mark.slow
def test_adapters_load_in_diffusers_and_merge(adapted: Parts, parts: Parts, tmp_path: Path) -> None:
    objective = {
        "kind": "dreambooth",
        "prompt": "a sks heart",
        "class_prompt": "a heart",
        "lora": {"rank": 2, "alpha": 5.0},
    }
    data = SCENES | {"resolution": 64}
    recipe = recipe_of(
        parts.checkpoint.folder, student={}, objective=objective, data=data, export={"half": False}
    )
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


@pytest.fixture
def older(exported: Exported, tmp_path: Path) -> Path:
    """An exported checkpoint in a folder of its own."""
    return Path(shutil.copytree(exported("small")[1], tmp_path / "out"))


@pytest.mark.parametrize(
    ("why", "message"),
    [
        ("not finite", r"export\.half=false"),
        ("full disk", "the disk is full"),
        pytest.param("killed while it replaced", r"export\.half=false", marks=pytest.mark.slow),
    ],
)
def test_an_export_that_fails_leaves_the_old_checkpoint(
    parts: Parts, older: Path, why: str, message: str
) -> None:
    before, task = content(older), trained(parts)
    if why != "full disk":
        with torch.no_grad():
            next(task.parts.unet.parameters()).view(-1)[0] = 1e6  # finite, but not as float16
    if why == "killed while it replaced":
        older.rename(older.parent / ".out.old")
        shutil.copytree(parts.checkpoint.folder, older.parent / ".out.new")
    room = files_no_longer_than(60_000) if why == "full disk" else nullcontext()
    with room, pytest.raises(TrainingError, match=message):
        export(task, recipe_of(parts.checkpoint.folder), older)
    assert content(older) == before
    assert [path.name for path in older.parent.iterdir()] == ["out"]


def test_a_folder_of_anything_else_is_left_alone(parts: Parts, tmp_path: Path) -> None:
    (tmp_path / "holidays").mkdir()
    (tmp_path / "holidays" / "beach.jpg").write_bytes(b"picture")
    with pytest.raises(TrainingError, match="no checkpoint"):
        export(trained(parts), recipe_of(parts.checkpoint.folder), tmp_path / "holidays")
    assert (tmp_path / "holidays" / "beach.jpg").read_bytes() == b"picture"


@pytest.mark.parametrize("marked_by", ["unet", "model_index.json"])
def test_what_stands_beside_a_checkpoint_is_not_lost(marked_by: str, parts: Parts, tmp_path: Path) -> None:
    out = tmp_path / "project"
    shutil.copytree(parts.checkpoint.folder / "unet", out / "unet")
    if marked_by != "unet":
        (out / marked_by).write_text("{}")
    (out / "src").mkdir()
    (out / "src" / "thesis.tex").write_text("chapter")
    with pytest.raises(TrainingError, match=r"would be lost[\s\S]*src"):
        export(trained(parts), recipe_of(parts.checkpoint.folder), out)
    assert (out / "src" / "thesis.tex").read_text() == "chapter"


@pytest.mark.parametrize("lost", ["base", "donor"])
def test_the_teacher_is_not_replaced_by_its_student(lost: str, parts: Parts, tmp_path: Path) -> None:
    for folder in ("base", "donor"):
        shutil.copytree(parts.checkpoint.folder, tmp_path / folder)
    teacher = {"base": str(tmp_path / "base"), "unet": str(tmp_path / "donor")}
    before = content(tmp_path / lost)
    with pytest.raises(TrainingError, match="starts from"):
        export(trained(load_parts(teacher)), recipe_of(teacher), tmp_path / lost)
    assert content(tmp_path / lost) == before


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_no_other_solver_takes_what_a_consistency_model_predicts(kind: Any, parts: Parts) -> None:
    consistent = replace(
        trained(parts, "none", guidance_embedding=8).parts, scheduler=kind.from_config(parts.scheduler.config)
    )
    recipe = recipe_of(
        parts.checkpoint.folder,
        student={},
        objective={"kind": "consistency", "embedding": 8, "grid_steps": 20, "timestep_scaling": 7.0},
    )
    assert isinstance(sampling_scheduler(consistent), LCMScheduler)
    exported = export_scheduler(consistent, recipe)
    assert isinstance(exported, LCMScheduler)
    assert (exported.config.original_inference_steps, exported.config.timestep_scaling) == (20, 7.0)


def test_another_class_takes_settings_and_no_defaults(parts: Parts) -> None:
    stated = {"beta_start": 0.001, "timestep_spacing": "trailing"}
    teacher = replace(parts, scheduler=PNDMScheduler(**stated))
    for kind in (DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler):
        recipe = recipe_of(parts.checkpoint.folder, export={"scheduler": {"class": kind.__name__}})
        found, wanted = (
            export_scheduler(teacher, recipe).config,
            kind.from_config(teacher.scheduler.config).config,
        )
        same = {
            name: value
            for name, value in wanted.items()
            if not name.startswith("_") and name != "clip_sample"
        }
        assert {name: found[name] for name in same} == same
        assert not found.get("clip_sample")


@pytest.mark.slow
def test_a_unet_keeps_the_scheduler_it_came_with(parts: Parts, tmp_path: Path) -> None:
    donor = tmp_path / "donor"
    shutil.copytree(parts.checkpoint.folder / "unet", donor / "unet")
    LCMScheduler.from_config(parts.scheduler.config).save_pretrained(donor / "scheduler")
    teacher = {"base": str(parts.checkpoint.folder), "unet": str(donor)}
    task = trained(load_parts(teacher), "none")
    recipe = recipe_of(teacher, student={}, objective={"kind": "prediction"}, export={"unet_only": True})
    out = export(task, recipe, tmp_path / "out")
    assert isinstance(
        load_pipeline(resolve(read_card(out / "README.md").checkpoint, near=out)).scheduler, LCMScheduler
    )


def test_a_unet_from_scratch_is_drawn_with_what_it_predicts(parts: Parts, tmp_path: Path) -> None:
    folder = str(parts.checkpoint.folder)
    networks = {"unet": {}, "vae": folder, "prediction": "v_prediction"}
    recipe = recipe_of(
        None, student={"networks": networks}, objective={"kind": "prediction"}, export={"unet_only": True}
    )
    task = trained(replace(parts, scheduler=sd_v1_scheduler("v_prediction"), checkpoint=None), "none")
    out = export(task, recipe, tmp_path / "out")
    drawn = load_pipeline(resolve(read_card(out / "README.md").checkpoint, near=out)).scheduler
    assert drawn.config.prediction_type == "v_prediction"


def test_an_export_does_not_take_the_place_of_what_lent_its_networks(parts: Parts, tmp_path: Path) -> None:
    lender = tmp_path / "lender"
    shutil.copytree(parts.checkpoint.folder, lender)
    networks = {"unet": {}, "vae": str(lender)}
    recipe = recipe_of(None, student={"networks": networks}, objective={"kind": "prediction"})
    before = content(lender)
    with pytest.raises(TrainingError, match="would be lost"):
        export(trained(replace(parts, checkpoint=None), "none"), recipe, lender)
    assert content(lender) == before


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
        export_scheduler(parts, recipe_of(parts.checkpoint.folder, export={"scheduler": scheduler}))


@pytest.mark.parametrize("there", [True, False])
def test_a_task_of_its_own_export_adds_files(there: bool, pristine_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if there:
        shutil.copytree(pristine_checkpoint, out)
    wanted = {name: value for name, value in content(out).items() if not name.startswith("vae/")}

    def write(folder: Path) -> None:
        for part in ("config.json", "vae/config.json" if there else "model.safetensors"):
            (folder / part).parent.mkdir(exist_ok=True)
            (folder / part).write_text("{}")
            wanted[part] = b"{}"

    export(SimpleNamespace(export=write), recipe_of("embedded:scenes-sd"), out)
    assert content(out) == wanted
