"""Reading recipes: what they mean, and what is said about those that mean nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from training.errors import TrainingError
from training.recipes.load import load_recipe, parse_recipe, recipe_names, require_data

RECIPE = """\
name: mine
title: Mine
teacher: CompVis/stable-diffusion-v1-4
student: {remove: small}
objective:
  kind: distillation
  pairing: bk-sdm
  weights: {task: 1, output: 1.0, feature: 0.5}
data: {kind: folder, path: pictures, resolution: 512, cache: true}
schedule: {steps: 1000, batch: 256, micro_batch: 64}
optimizer: {learning_rate: 5e-5, betas: [0.9, 0.999]}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    return path


def complaint(path: Path | str, *overrides: str) -> str:
    with pytest.raises(TrainingError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


def test_a_file_is_read_with_its_types(file: Path) -> None:
    recipe = load_recipe(file)
    assert (recipe.name, recipe.student.remove, recipe.images) == ("mine", "small", 256_000)
    assert recipe.objective.kind == "distillation"
    assert isinstance(recipe.objective.weights.task, float), "a whole number is a number too"
    assert recipe.optimizer.betas == (0.9, 0.999)
    assert recipe.ema is None
    with pytest.raises(ValidationError, match="frozen"):
        recipe.name = "yours"


def test_what_a_recipe_says_survives_being_written_down(file: Path) -> None:
    for name in [file, *recipe_names()]:
        recipe = load_recipe(name)
        assert parse_recipe(recipe.model_dump(mode="json", by_alias=True)) == recipe


def test_overrides_replace_values_and_make_blocks(file: Path) -> None:
    overrides = ["schedule.steps=7", "ema.decay=0.99", "optimizer.betas=[0.8, 0.9]", "data.path=a=b"]
    recipe = load_recipe(file, [*overrides, "teacher=./here"])
    assert recipe.schedule.steps == 7
    assert recipe.ema is not None
    assert recipe.ema.decay == 0.99
    assert recipe.optimizer.betas == (0.8, 0.9)
    assert recipe.teacher == "./here"
    assert recipe.data.kind == "folder"
    assert recipe.data.path == "a=b"


def test_data_of_another_kind_leaves_the_keys_of_the_first_behind(file: Path) -> None:
    data = load_recipe(file, ["data.kind=webdataset", "data.urls=a.tar"]).data
    assert data.kind == "webdataset"
    assert (data.urls, data.resolution, data.cache) == (("a.tar",), 512, True)


@pytest.mark.parametrize("value", ["/data/set #1", "&x dog", "*x", "!x dog"])
def test_what_yaml_would_leave_out_of_a_value_is_refused(file: Path, value: str) -> None:
    assert "command line: data.path" in complaint(file, f"data.path={value}")
    assert load_recipe(file, [f'data.path="{value}"']).data.path == value


def test_a_file_of_any_name_is_a_recipe(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    file.rename("mine")
    assert load_recipe("mine").title == "Mine"


def test_an_override_takes_the_place_of_the_source_of_what_it_replaces() -> None:
    before = load_recipe("bk-sdm-base")
    after = load_recipe("bk-sdm-base", ["optimizer.learning_rate=1e-4"])
    assert "optimizer.learning_rate" in before.sources
    assert "optimizer.learning_rate" not in after.sources
    assert after.unstated["optimizer.learning_rate"] == "set on the command line"
    assert after.sources["optimizer.betas"] == before.sources["optimizer.betas"]


def test_a_lone_text_stands_for_a_list_of_one(file: Path) -> None:
    data = load_recipe(file, ["data={kind: webdataset, urls: 's3://here/{0..9}.tar'}"]).data
    assert data.kind == "webdataset"
    assert data.urls == ("s3://here/{0..9}.tar",)


@pytest.mark.parametrize(
    ("text", "key", "meant"),
    [
        (f"{RECIPE}optimiser: {{learning_rate: 1e-4}}\n", "optimiser", "'optimizer'"),
        (f"{RECIPE}learning_rate: 1e-4\n", "learning_rate", "'optimizer.learning_rate'"),
        # Compared with the keys of its kind, to which image_column does not belong.
        (RECIPE.replace("path:", "pth:"), "data.pth", "'path'"),
    ],
)
def test_a_misspelt_key_is_named_with_the_one_meant(file: Path, text: str, key: str, meant: str) -> None:
    file.write_text(text)
    told = complaint(file)
    assert told.startswith(f"{file}: {key}: unknown key")
    assert f"Did you mean {meant}?" in told
    assert "image_column" not in told


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("schedule.steps='10'", "schedule.steps", "not a whole number (found '10')"),
        ("schedule.steps=1.5", "schedule.steps", "not a whole number"),
        ("schedule.steps=true", "schedule.steps", "not a whole number"),
        ("schedule.steps=0", "schedule.steps", "not above 0"),
        ("optimizer.learning_rate='1e-4'", "optimizer.learning_rate", "not a number"),
        ("optimizer.learning_rate=.inf", "optimizer.learning_rate", "not a finite number"),
        ("optimizer.learning_rate=.nan", "optimizer.learning_rate", "not"),
        ("optimizer.learning_rate=-1e-4", "optimizer.learning_rate", "not above 0"),
        ("optimizer.betas=[0.9]", "optimizer.betas[1]", "missing"),
        ("optimizer.betas=[0.9, 1.0]", "optimizer.betas[1]", "not below 1"),
        ("ema.decay=1", "ema.decay", "not below 1"),
        ("ema.decay=0", "ema.decay", "not above 0"),
        ("data.flip=1", "data.flip", "neither true nor false (found 1)"),
        ("precision=fp8", "precision", "Take one of: fp32, bf16, fp16"),
        ("student.remove=smal", "student.remove", "Did you mean 'small'?"),
        ("objective.kind=distilation", "objective.kind", "Did you mean 'distillation'?"),
        ("objective={}", "objective.kind", "Take one of: prediction"),
        ("data=pictures", "data", "not a mapping"),
        ("optimizer=3", "optimizer", "not a mapping"),
        ("teacher={base: a}", "teacher", "{base: ..., unet: ...}"),
        ("teacher=''", "teacher", "not a checkpoint"),
        ("name=a/b", "name", "not of the form"),
        ("title=null", "title", "not text"),
        ("watch.trackers=tensorbord", "watch.trackers", "Did you mean 'tensorboard'?"),
        ("seed=2026-13-45", "seed", "not valid YAML: month must be in 1..12"),
        ("schedule.seed=2026-01-01", "schedule.seed", "not a whole number"),
        ("schedule.seed=!!bool maybe", "schedule.seed", "not valid YAML"),
        ("schedule.seed=!!set {a}", "schedule.seed", "not a whole number"),
        (f"schedule.seed={'9' * 5000}", "schedule.seed", "not valid YAML"),
        (f"schedule.seed={'[' * 5000}", "schedule.seed", "lists and mappings in each other"),
        (f"title=[{'x, ' * 20_000}]", "title", "not text"),
        ("sources={schedule.step: x}", "sources.schedule.step", "Did you mean 'schedule.steps'?"),
    ],
)
def test_a_wrong_value_is_named_with_key_and_remedy(file: Path, override: str, key: str, words: str) -> None:
    text = complaint(file, override)
    assert text.startswith(f"command line: {key}: ")
    assert words in text
    assert len(text) < 2000


def test_a_key_of_a_thousand_parts_is_no_override(file: Path) -> None:
    text = complaint(file, f"{'a.' * 100_000}b=1")
    assert "not an override" in text
    assert len(text) < 2000


@pytest.mark.parametrize("content", ["a: &a [*a]", "[" * 5000, "x: " + "y" * (1 << 21), "\0"])
def test_a_recipe_that_is_a_bomb_or_no_file_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(content)
    assert complaint(path).startswith(str(path))
    path.unlink()
    os.mkfifo(path)
    assert "no such recipe" in complaint(path)


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        (["schedule.micro_batch=60"], "schedule.micro_batch", "Take 32"),
        (["teacher=null", "student={}"], "teacher", "distillation needs one"),
        (["student.remove=none"], "student.remove", "nothing to distil"),
        (
            ["objective={kind: prediction}", "teacher=null", "student={}"],
            "student.networks",
            "which networks",
        ),
        (["objective={kind: prediction}", "teacher=null"], "student.remove", "no teacher"),
        (["objective={kind: consistency}"], "student.remove", "starts from the teacher as it is"),
        (
            ["objective={kind: consistency, guidance: [9, 5]}", "student={}"],
            "objective.guidance",
            "not a range",
        ),
        (
            ["objective={kind: consistency, embedding: 255}", "student={}"],
            "objective.embedding",
            "even width",
        ),
        (["objective={kind: consistency, embedding: 2}", "student={}"], "objective.embedding", "even width"),
        (["objective={kind: consistency, grid_steps: 1001}", "student={}"], "objective.grid_steps", "1000"),
        (["objective={kind: consistency, sigma_data: 1}", "student={}"], "objective.sigma_data", "Take 0.5"),
        (["student.networks={unet: {}, vae: x}"], "teacher", "student.networks"),
        (["objective.weights={task: 0, output: 0, feature: 0}"], "objective.weights", "all are zero"),
        (
            ["objective={kind: dreambooth, prompt: a, class_prompt: b, class_images: 0}", "student={}"],
            "objective.class_images",
            "prior weight of 1",
        ),
        (["optimizer.warmup_steps=1001"], "optimizer.warmup_steps", "longer than the run"),
        (["watch.preview_images=100"], "watch.prompts", "no prompts"),
        (["data.cache=false", "data.cache_text=true"], "data.cache_text", "cache: true"),
        (
            [
                "objective={kind: prediction, train_text_encoder: true}",
                "student.remove=none",
                "export.unet_only=true",
            ],
            "export.unet_only",
            "would be lost",
        ),
        (
            ["objective={kind: prediction, train_text_encoder: true}", "data.cache_text=true"],
            "data.cache_text",
            "its states change",
        ),
        (
            ["objective={kind: prediction, inner_captions: 0.5, train_text_encoder: true}"],
            "objective.inner_captions",
            "of scenes alone",
        ),
        (
            ["objective={kind: prediction, inner_captions: 0.5}", "data={kind: scenes, cache: true}"],
            "objective.inner_captions",
            "train_text_encoder: true too",
        ),
        (
            [
                "objective={kind: prediction, inner_captions: 0.5, train_text_encoder: true}",
                "data={kind: scenes, cache: true}",
                "teacher=null",
                "student={networks: {unet: {mid_block_type: null}, vae: ORG/NAME}}",
            ],
            "objective.inner_captions",
            "hears no text",
        ),
        (["data={kind: scenes, cache: true, close_up: 32}"], "data.close_up", "Write layouts: "),
        (
            ["data={kind: scenes, cache: true, close_up: 20, layouts: one}"],
            "data.close_up",
            "Take 24, 32",
        ),
        (["data={kind: scenes, close_up: 32, layouts: one}"], "data.close_up", "Write cache: true"),
        (
            [
                "objective={kind: autoencoder, squared_weight: 1, kl_weight: 0, square: 30, "
                "network: {block_out_channels: [8, 8, 8]}}"
            ],
            "objective.square",
            "multiple of 4 from 8 to 64",
        ),
        (
            [
                "export.unet_only=true",
                "teacher=null",
                "objective={kind: prediction}",
                "student={networks: {unet: {}, vae: ORG/NAME, text_encoder: ORG/OTHER}}",
            ],
            "export.unet_only",
            "another one than that of the VAE's checkpoint",
        ),
        (["objective={kind: classifier, network: {}}"], "data.cache", "learns from pictures"),
        (
            ["objective={kind: classifier, network: {}}", "data={kind: scenes, domain: faces}"],
            "data.domain",
            "classifier learns all names",
        ),
        (["data={kind: scenes, domain: cats}"], "data.domain", "Take one of: all, faces, things"),
    ],
)
def test_values_that_contradict_are_named(file: Path, overrides: list[str], key: str, words: str) -> None:
    text = complaint(file, *overrides)
    assert re.search(
        rf"^ *(command line|{re.escape(str(file))}): {re.escape(key)}: .*{words}", text, re.MULTILINE
    )


def test_a_figure_cannot_be_stated_and_unstated(file: Path) -> None:
    text = complaint(file, "sources={schedule.steps: paper}", "unstated={schedule.steps: a guess}")
    assert "unstated.schedule.steps: has a source too" in text


def test_everything_that_is_wrong_is_told_at_once(file: Path) -> None:
    file.write_text(
        RECIPE.replace("batch: 256", "batch: many").replace("5e-5", "-1").replace("small", "smal")
    )
    text = complaint(file, "ema.decy=0.9")
    for key in ("schedule.batch", "optimizer.learning_rate", "student.remove"):
        assert f"{file}: {key}: " in text
    assert "command line: ema.decy: unknown key" in text
    assert "ema.decay: a key is missing" in text
    assert text.startswith("5 errors")  # the decay that is missing is the one that is misspelt


def test_a_key_that_stands_twice_is_an_error_with_its_line(file: Path) -> None:
    file.write_text(f"{RECIPE}name: other\n")
    assert f"{file}, line {RECIPE.count(chr(10)) + 1}: a key stands twice" in complaint(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [1\n", "not valid YAML"),
        ("- a\n", "not a recipe"),
        ("", "not a recipe"),
        ("!!python/name:os.system\n", "not valid"),
        (b"\xff\xfe\x00", ".*cannot be read"),
    ],
)
def test_a_file_that_is_no_recipe_is_told_so(file: Path, content: str | bytes, words: str) -> None:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert re.match(rf"{re.escape(str(file))}(, line \d+)?: {words}", complaint(file))


def test_a_recipe_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    assert "Did you mean 'bk-sdm-small'?" in complaint("bk-sdm-smal")
    assert "bk-sdm-tiny-2m" in complaint("nothing-like-it")
    assert complaint(tmp_path / "no.yaml").startswith(f"{tmp_path / 'no.yaml'}: no such recipe")


@pytest.mark.parametrize("override", ["steps", "=3", "schedule.=3", ".steps=3"])
def test_an_override_without_key_or_value_is_told_so(file: Path, override: str) -> None:
    assert complaint(file, override).startswith("command line: not an override")


def test_an_override_below_a_plain_value_is_told_so(file: Path) -> None:
    assert "schedule.steps has no parts" in complaint(file, "schedule.steps.more=3")
    assert "not valid YAML" in complaint(file, "schedule.steps=[")


@pytest.mark.parametrize(
    ("data", "key"), [("folder", "data.path"), ("webdataset", "data.urls"), ("huggingface", "data.name")]
)
def test_data_that_is_left_to_the_user_is_asked_for(file: Path, data: str, key: str) -> None:
    recipe = load_recipe(file, [f"data={{kind: {data}}}"])
    with pytest.raises(TrainingError, match=re.escape(f"mine: {key}: ")):
        require_data(recipe)
    require_data(load_recipe(file, ["data={kind: scenes}"]))
    require_data(load_recipe(file))


def test_another_teacher_does_not_come_with_the_licence_of_the_first() -> None:
    assert load_recipe("bk-sdm-small").export.license == "creativeml-openrail-m"
    assert load_recipe("bk-sdm-small", ["teacher=a/b"]).export.license is None
    assert load_recipe("bk-sdm-small", ["teacher=a/b", "export.license=mit"]).export.license == "mit"
