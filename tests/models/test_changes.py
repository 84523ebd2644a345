"""In what a checkpoint differs from another one is said component by component."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pytest_sdbench.models import weights
from pytest_sdbench.models.changes import changes, describe
from pytest_sdbench.models.checkpoint import resolve
from tests.tiny_checkpoint import make_checkpoint

UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
Edit = Callable[[Path], object]


def config(file: str, **values: Any) -> Edit:
    return lambda folder: (folder / file).write_text(
        json.dumps(json.loads((folder / file).read_text()) | values)
    )


def scaled(folder: Path) -> None:
    tensors = load_file(folder / UNET_WEIGHTS)
    tensors["conv_in.weight"] *= 1.5
    tensors["conv_out.bias"] += 1e-3
    save_file(tensors, folder / UNET_WEIGHTS)


def without_class(folder: Path) -> None:
    config("model_index.json", scheduler=["diffusers", "DDIMScheduler"])(folder)


SCHEDULER = "scheduler/scheduler_config.json"
CASES: dict[str, tuple[Edit, list[str]]] = {
    "scheduler": (
        config(SCHEDULER, beta_schedule="linear", beta_end=0.02),
        [
            "scheduler.beta_end: 0.02, recorded 0.012",
            "scheduler.beta_schedule: linear, recorded scaled_linear",
        ],
    ),
    "class": (without_class, ["scheduler._class_name: DDIMScheduler, recorded PNDMScheduler"]),
    "defaults": (
        config(SCHEDULER, _use_default_values=["beta_schedule"]),
        ["scheduler.beta_schedule: linear, recorded scaled_linear"],
    ),
    "new key": (config("vae/config.json", latents_std=[1, 2]), ["vae.latents_std: [1, 2], recorded null"]),
    "text": (
        config("text_encoder/config.json", hidden_act="gelu"),
        ["text_encoder.hidden_act: gelu, recorded quick_gelu"],
    ),
    "length": (
        config("tokenizer/tokenizer_config.json", model_max_length=20),
        ["tokenizer_config.model_max_length: 20, recorded 77"],
    ),
    "merges": (
        lambda folder: (folder / "tokenizer" / "merges.txt").unlink(),
        ["tokenizer: merges.txt is missing"],
    ),
    "further file": (
        lambda folder: (folder / "tokenizer" / "added_tokens.json").write_text("{}"),
        ["tokenizer: added_tokens.json, recorded without it"],
    ),
}


@pytest.mark.parametrize(("edit", "says"), CASES.values(), ids=CASES)
def test_configurations_and_vocabulary_are_compared_key_by_key(
    tiny_checkpoint: Path, pristine_checkpoint: Path, edit: Edit, says: list[str]
) -> None:
    edit(tiny_checkpoint)
    ours, theirs = resolve(str(tiny_checkpoint)), resolve(str(pristine_checkpoint))
    assert ours.fingerprint != theirs.fingerprint
    assert changes(ours, theirs) == says
    assert changes(ours, describe(theirs)) == says


@pytest.mark.parametrize(
    ("mine", "other", "says"),
    [
        ("1", 1, '"1", recorded 1'),
        (True, "true", 'true, recorded "true"'),
        (1, 1.0, "1, recorded 1.0"),
        (
            [0] * 99 + [1],
            [0] * 99 + [2],
            "..., 0, 0, 0, 0, 0, 0, 1] (300 characters), recorded ..., 0, 0, 0, 0, 0, 0, 2] "
            "(300 characters), from character 299 on",
        ),
        (
            "x" * 499 + "1",
            "x" * 499 + "12",
            f'...{"x" * 19}1" (502 characters), recorded ...{"x" * 19}12" (503 characters), '
            "from character 502 on",
        ),
    ],
)
def test_values_are_compared_whole_and_shortened_to_be_shown(
    tiny_checkpoint: Path, tmp_path: Path, mine: Any, other: Any, says: str
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "theirs")
    config(SCHEDULER, note=mine)(tiny_checkpoint)
    config(SCHEDULER, note=other)(tmp_path / "theirs")
    ours, theirs = resolve(str(tiny_checkpoint)), resolve(str(tmp_path / "theirs"))
    assert changes(ours, theirs) == changes(ours, describe(theirs)) == [f"scheduler.note: {says}"]


def test_tensors_are_counted_measured_and_the_largest_named(
    tiny_checkpoint: Path, pristine_checkpoint: Path
) -> None:
    scaled(tiny_checkpoint)
    ours, theirs = resolve(str(tiny_checkpoint)), resolve(str(pristine_checkpoint))
    before, after = (load_file(folder / UNET_WEIGHTS) for folder in (pristine_checkpoint, tiny_checkpoint))
    norm = sum(float(value.double().norm()) ** 2 for value in before.values()) ** 0.5
    less = sum(float((after[name].double() - before[name].double()).norm()) ** 2 for name in before) ** 0.5
    head = f"unet: 2 of {len(before)} tensors differ"
    assert changes(ours, theirs) == [
        f"{head}, by {less / norm:.2g} of the norm of all; most: conv_in.weight, conv_out.bias"
    ]
    assert changes(ours, describe(theirs)) == [f"{head}; most: conv_in.weight, conv_out.bias"]


def test_each_file_of_the_other_checkpoint_is_opened_once_for_names_and_once_for_values(
    tmp_path: Path, pristine_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, load = Counter[Path](), weights._load_bin

    def counted(file: Path) -> Any:
        opened[file] += 1
        return load(file)

    monkeypatch.setattr(weights, "_load_bin", counted)
    pickled = resolve(str(make_checkpoint(tmp_path / "bin", safe_serialization=False)))
    assert changes(resolve(str(pristine_checkpoint)), pickled)
    assert sorted(opened.values()) == [2, 2], "transformers writes safetensors alone"


def test_other_forms_of_the_same_values_and_other_networks(tmp_path: Path, pristine_checkpoint: Path) -> None:
    theirs = resolve(str(pristine_checkpoint))
    pickled = resolve(str(make_checkpoint(tmp_path / "bin", safe_serialization=False)))
    assert changes(pickled, theirs)[-1].endswith(": other files with the same values")
    assert not [line for line in changes(pickled, describe(theirs)) if "differ" in line]
    half = changes(resolve(str(make_checkpoint(tmp_path / "half", dtype="float16"))), theirs)
    assert any(line.startswith("unet: ") and ", by 0.000" in line for line in half)
    smaller = resolve(str(make_checkpoint(tmp_path / "smaller", unet={"layers_per_block": 1})))
    lines = changes(smaller, theirs, whose="of the teacher")
    assert lines[0] == "unet.layers_per_block: 1, of the teacher 2"
    assert any(re.match(r"unet: \d+ tensors missing, e.g. ", line) for line in lines)
    described = changes(smaller, describe(theirs), whose="of the teacher")
    assert any(re.fullmatch(r"unet: \d+ tensors, of the teacher \d+", line) for line in described)


def test_strings_of_others_are_short_and_on_one_line(
    tiny_checkpoint: Path, pristine_checkpoint: Path
) -> None:
    keys = {f"key {i}\n": "x" * 999 for i in range(100)}
    config("unet/config.json", **keys, act_fn="a\n\x1b[31m")(tiny_checkpoint)
    lines = changes(resolve(str(tiny_checkpoint)), resolve(str(pristine_checkpoint)))
    assert len(lines) == 9
    assert lines[-1] == "unet: 93 more keys differ"
    assert all(line.isprintable() and len(line) < 300 for line in lines)
