"""A single file in the original layout is the checkpoint that diffusers makes of it."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pytest_sdbench.base.errors import CheckpointError, SdbenchError, Unavailable
from pytest_sdbench.base.processes import this_host
from pytest_sdbench.models import conversion, made
from pytest_sdbench.models.changes import changes
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.models.counts import component_sizes
from pytest_sdbench.models.integrity import verify
from pytest_sdbench.models.pipeline import load_pipeline
from tests.models.original_layout import original_tensors
from tests.project import make_card
from tests.tiny_checkpoint import make_checkpoint

Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors], Any]


def pictures(checkpoint: Any) -> Any:
    pipeline = load_pipeline(checkpoint)
    generator = torch.Generator().manual_seed(1)
    return pipeline(["red"], num_inference_steps=2, generator=generator, output_type="np").images


def save(tensors: Tensors, file: Path) -> Path:
    if file.suffix.lower() == ".ckpt":
        torch.save({"state_dict": tensors, "global_step": 7}, file)
    else:
        save_file(tensors, file)
    return file


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_its_pictures_sizes_and_fingerprint_are_those_of_the_folder(
    pristine_checkpoint: Path, tmp_path: Path, suffix: str
) -> None:
    file = save(original_tensors(pristine_checkpoint), tmp_path / f"v1{suffix}")
    folder = resolve(str(pristine_checkpoint))
    single = resolve(str(pristine_checkpoint), card="mini", weights=file)
    verify(single)
    assert np.array_equal(pictures(single), pictures(folder))
    assert component_sizes(single) == component_sizes(folder)
    # The same tensors under the same configuration: the same checkpoint, whatever file it came in.
    assert single.fingerprint == folder.fingerprint
    assert single.choices[0].startswith(f"single file: v1{suffix}, read with the configuration")
    assert resolve({"base": str(pristine_checkpoint), "file": str(file)}).folder == single.folder


def other_noise(tensors: Tensors) -> None:
    tensors["model.diffusion_model.out.2.bias"] += 1


def nothing(tensors: Tensors) -> None:
    pass


@pytest.mark.parametrize(("change", "says"), [(other_noise, "1 of 684 tensors"), (nothing, "same content")])
def test_in_what_it_differs_from_the_folder_is_said_tensor_by_tensor(
    pristine_checkpoint: Path, tmp_path: Path, change: Change, says: str
) -> None:
    tensors = original_tensors(pristine_checkpoint)
    change(tensors)
    file = save(tensors, tmp_path / "v1.safetensors")
    single = resolve(str(pristine_checkpoint), weights=file)
    (line,) = changes(single, resolve(str(pristine_checkpoint)))
    assert says in line


def test_half_precision_is_widened_and_what_is_not_read_is_told(
    pristine_checkpoint: Path, tmp_path: Path
) -> None:
    tensors = {name: value.half() for name, value in original_tensors(pristine_checkpoint).items()}
    tensors |= {f"model_ema.x{i}": torch.ones(1) for i in range(3)}
    single = resolve(str(pristine_checkpoint), weights=save(tensors, tmp_path / "v1.safetensors"))
    stored = load_file(single.folder / "unet" / "diffusion_pytorch_model.safetensors")
    full = load_file(pristine_checkpoint / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(stored[name], full[name].half().float()) for name in full)
    assert single.choices[1] == "not looked at: 3 tensors of v1.safetensors, e.g. of model_ema"


def without(prefix: str) -> Change:
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(prefix)]


def renamed(old: str, new: str) -> Change:
    return lambda tensors: tensors.update(
        {name.replace(old, new): tensors.pop(name) for name in list(tensors) if old in name}
    )


def with_nan(tensors: Tensors) -> None:
    tensors["first_stage_model.quant_conv.bias"][0] = torch.nan


def wider(tensors: Tensors) -> None:
    name = "model.diffusion_model.out.2.weight"
    tensors[name] = torch.cat([tensors[name]] * 2)


def integers(tensors: Tensors) -> None:
    name = "model.diffusion_model.time_embed.0.weight"
    tensors[name] = tensors[name].to(torch.int8)


def extra(tensors: Tensors) -> None:
    tensors["model.diffusion_model.input_blocks.1.1.adapter.weight"] = torch.ones(3)


BAD: dict[str, tuple[Change, str]] = {
    "no vae": (without("first_stage_model."), "without the weights of vae"),
    "unet alone": (renamed("model.diffusion_model.", "unet."), "without the weights of unet"),
    "no tensor of the unet": (without("model.diffusion_model.out.2.bias"), "cannot read it"),
    "no tensor of the text": (
        without("cond_stage_model.transformer.text_model.final_layer_norm.bias"),
        "1 tensors of the text_encoder are missing",
    ),
    "one too many": (extra, "the file and the configuration of the unet disagree"),
    "another shape": (wider, "cannot read it with the configuration"),
    "nan": (with_nan, "NaN or infinity in 1 of"),
    "integers": (integers, "integers in the place of weights"),
    "sdxl": (renamed("cond_stage_model.", "conditioner.embedders.0."), "a single file of SDXL"),
    "a component": (renamed("", "a."), "not a single file in the layout"),
    "lora": (renamed("model.diffusion_model.", "lora_unet_"), "not a LoRA that diffusers reads whole"),
}


@pytest.mark.parametrize(("change", "says"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_an_error_that_names_it(
    pristine_checkpoint: Path, tmp_path: Path, change: Change, says: str
) -> None:
    tensors = original_tensors(pristine_checkpoint)
    change(tensors)
    file = save(tensors, tmp_path / "v1.safetensors")
    with pytest.raises(CheckpointError, match=says):
        verify(resolve(str(pristine_checkpoint), card="mini", weights=file))


class Code:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.mkdir, ("was-run",))


def zipped(file: Path) -> None:
    torch.save({"state_dict": {}, "callbacks": Code()}, file)


def plain_pickle(file: Path) -> None:
    file.write_bytes(pickle.dumps({"state_dict": Code()}))


def cut(file: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(99)}}, file)
    file.write_bytes(file.read_bytes()[:300])


@pytest.mark.parametrize(
    ("write", "says"), [(zipped, "refused"), (plain_pickle, "refused"), (cut, "damaged")]
)
def test_code_in_a_ckpt_is_not_run(
    pristine_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path], None],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "v1.ckpt")
    with pytest.raises(CheckpointError, match=says):
        resolve(str(pristine_checkpoint), weights=tmp_path / "v1.ckpt")
    assert not (tmp_path / "was-run").exists()


def test_it_needs_the_configuration_of_a_checkpoint(pristine_checkpoint: Path, tmp_path: Path) -> None:
    file = save(original_tensors(pristine_checkpoint), tmp_path / "v1.safetensors")
    with pytest.raises(CheckpointError, match=r"says nothing of its configuration.*base: .*file: "):
        resolve(str(file))
    with pytest.raises(Unavailable, match="the card names none"):
        resolve(None, card="mini", weights=file)
    with pytest.raises(CheckpointError, match="no such file of weights"):
        resolve({"base": str(pristine_checkpoint), "file": str(tmp_path / "absent.ckpt")})
    # No weights are needed there.
    bare = shutil.copytree(
        pristine_checkpoint, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors")
    )
    verify(resolve(str(bare), weights=file))
    # What is quantised there says nothing of the file.
    config = bare / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"a": 1}}))
    verify(resolve(str(bare), weights=file))
    # Of another network it is another file.
    other = make_checkpoint(tmp_path / "other", unet={"layers_per_block": 1})
    with pytest.raises(CheckpointError, match="with the configuration"):
        resolve(str(other), weights=file)


FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no room.*TMPDIR"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "no room.*TMPDIR"),
        (SafetensorError(FULL), "no room.*TMPDIR"),
        (PermissionError(errno.EACCES, "Permission denied"), "cannot be converted.*Permission denied"),
        (SafetensorError("Error while serializing: x"), "cannot be converted.*serializing: x"),
    ],
)
def test_what_the_disk_refuses_is_named_and_leaves_nothing(
    pristine_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    file = save(original_tensors(pristine_checkpoint), tmp_path / "v1.safetensors")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def refuse(model: Any, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(conversion, "save", refuse)
    with pytest.raises(Unavailable, match=says):
        resolve(str(pristine_checkpoint), weights=file)
    assert not list(temporary.iterdir())


def test_what_killed_processes_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {
        "dead": f"sdbench-{this_host()}-{dead.pid}-x",
        "alive": f"sdbench-{this_host()}-{os.getppid()}-x",
        "elsewhere": f"sdbench-0123456789abcdef-{dead.pid}-x",
        "another": f"sdbench-{this_host()}-x",
    }
    for name in names.values():
        (tmp_path / name).mkdir()
    folder = made.once("key", [], lambda folder: None)
    assert folder.name.startswith(f"sdbench-{this_host()}-{os.getpid()}-")
    del made._made["key", ()]
    assert {path.name for path in tmp_path.iterdir()} == {*names.values(), folder.name} - {names["dead"]}


PROJECTION = "cond_stage_model.transformer.text_projection.weight"


@pytest.mark.parametrize(
    ("names", "rest"),
    [
        ((PROJECTION, "cond_stage_model.transformer.text_model.embeddings.position_ids"), [PROJECTION]),
        (
            [
                *(f"cond_stage_model.model.{name}" for name in ("ln_final.bias", "positional_embedding")),
                "cond_stage_model.model.transformer.resblocks.1.ln_1.bias",
                "cond_stage_model.model.logit_scale",
                "cond_stage_model.model.transformer.resblocks.2.ln_1.bias",
            ],
            [
                "cond_stage_model.model.logit_scale",
                "cond_stage_model.model.transformer.resblocks.2.ln_1.bias",
            ],
        ),
    ],
    ids=["v1", "v2"],
)
def test_what_the_text_encoder_does_not_take_is_known(
    pristine_checkpoint: Path, names: list[str], rest: list[str]
) -> None:
    own = list(original_tensors(pristine_checkpoint))
    folder = pristine_checkpoint / "text_encoder"
    layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    assert layers == 2
    assert conversion._text_rest(Path("v.ckpt"), [*own, *names], folder) == rest


def test_and_is_told(pristine_checkpoint: Path, tmp_path: Path) -> None:
    tensors = original_tensors(pristine_checkpoint) | {PROJECTION: torch.ones(3)}
    single = resolve(str(pristine_checkpoint), weights=save(tensors, tmp_path / "v1.safetensors"))
    assert single.choices[1] == f"not looked at: 1 tensors of v1.safetensors, e.g. of {PROJECTION}"


@pytest.mark.parametrize("relative", [False, True])
def test_a_card_may_name_one(pristine_checkpoint: Path, tmp_path: Path, relative: bool) -> None:
    from pytest_sdbench.cards.card import read_card
    from pytest_sdbench.cards.network import checkpoint_of

    file = save(original_tensors(pristine_checkpoint), tmp_path / "v1.safetensors")
    name = "./v1.safetensors" if relative else str(file)
    path = make_card(
        tmp_path / "mini.md",
        checkpoint={"base": str(pristine_checkpoint), "file": name},
        protocols=[],
        claims={},
    )
    assert checkpoint_of(read_card(path)).spec.startswith(f"base: {pristine_checkpoint}, file: ")
    make_card(path, checkpoint={"base": "x", "folder": "y"}, protocols=[], claims={})
    with pytest.raises(SdbenchError, match=re.escape("{base: CHECKPOINT, unet: FOLDER}, or lora or file")):
        read_card(path)


@pytest.mark.parametrize("name", ["v1.safetensors", "v1.ckpt", "v1.SAFETENSORS", "v1.CKPT"])
@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_endings_in_capitals_and_text_encoders_of_old_merges_are_read(
    pristine_checkpoint: Path, tmp_path: Path, name: str, prefix: str
) -> None:
    known = "cond_stage_model.transformer."
    tensors = {
        key.replace(f"{known}text_model.", known + prefix): value
        for key, value in original_tensors(pristine_checkpoint).items()
    }
    single = resolve(str(pristine_checkpoint), weights=save(tensors, tmp_path / name))
    assert single.fingerprint == resolve(str(pristine_checkpoint)).fingerprint
    assert single.choices == (single.notes[0],)
    assert sorted(path.name for path in single.folder.iterdir() if path.is_file()) == ["model_index.json"]
