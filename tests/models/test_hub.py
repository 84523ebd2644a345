"""Checkpoints of the hub: what its cache has, what is fetched, and what is said where nothing answers."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from pytest_sdbench.base.errors import CheckpointError, Unavailable
from pytest_sdbench.models import hub
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.models.hub import INDEX, SCHEDULER, CachedCopy, forget_failures
from pytest_sdbench.models.integrity import verify
from pytest_sdbench.models.pipeline import load_pipeline

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LORA = (("A", (1, 4, 3, 3)), ("B", (8, 1, 1, 1)))
"""The shapes of a LoRA's layer."""
UNET_WEIGHTS, UNET_BIN = (f"unet/diffusion_pytorch_model.{kind}" for kind in ("safetensors", "bin"))


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no network."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    forget_failures()
    return cache


def fill_cache(cache: Path, name: str, folder: Path) -> Path:
    """Lay ``folder`` out as the hub's cache does: blobs, and a snapshot of links to them."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "blobs").mkdir()
    snapshot = repository / "snapshots" / COMMIT
    for i, file in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, repository / "blobs" / f"{i:064x}")
        link.symlink_to(os.path.relpath(repository / "blobs" / f"{i:064x}", link.parent))
    return snapshot


@pytest.mark.parametrize(
    ("spec", "download"),
    [
        ("org/tiny", False),
        ("org/tiny@main", False),
        (f"org/tiny@{COMMIT}", False),
        (f"org/tiny@{COMMIT}", True),
    ],
)
def test_the_hub_cache_is_used_without_network(
    hub_cache: Path, pristine_checkpoint: Path, spec: str, download: bool
) -> None:
    snapshot = fill_cache(hub_cache, "org/tiny", pristine_checkpoint)
    checkpoint = resolve(spec, download=download)
    assert checkpoint.folder == snapshot
    assert checkpoint.fingerprint == resolve(str(pristine_checkpoint)).fingerprint


@pytest.mark.parametrize(
    ("spec", "download", "message"),
    [
        ("org/tiny", True, "cannot be fetched"),
        (f"org/tiny@{COMMIT}", False, "not in the hub cache.*--sdbench-download"),
        (f"org/tiny@{COMMIT}", True, "cannot be fetched.*Offline"),
    ],
)
def test_what_is_not_here_is_unavailable_with_reason_and_remedies(
    hub_cache: Path, spec: str, download: bool, message: str
) -> None:
    with pytest.raises(Unavailable, match=rf"{message}.*--sdbench-weights tiny=PATH"):
        resolve(spec, card="tiny", download=download)


@pytest.mark.parametrize("spec", ["org/tiny", "org/tiny@main"])
def test_a_cached_branch_will_do_where_the_hub_does_not_answer_and_it_is_said(
    hub_cache: Path, pristine_checkpoint: Path, spec: str
) -> None:
    snapshot = fill_cache(hub_cache, "org/tiny", pristine_checkpoint)
    with pytest.warns(CachedCopy, match="org/tiny: the cached copy is taken as it is: .*cannot be fetched"):
        assert resolve(spec, download=True).folder == snapshot
    for name in ("tokenizer.json", "merges.txt"):
        (snapshot / "tokenizer" / name).unlink(missing_ok=True)
    with pytest.raises(Unavailable, match="cannot be fetched"):
        resolve(spec, download=True)


@pytest.mark.parametrize("name", ["org/my--model", "org/a..b", "org/name.git"])
def test_a_name_that_the_hub_has_none_of_is_explained(name: str) -> None:
    for spec in (name, {"base": "embedded:scenes-sd", "lora": name}):
        with pytest.raises(CheckpointError, match=f"not the name of a repository on the hub.*{name}"):
            resolve(spec)


class TransportError(Exception):
    """Named as httpx's, which knows no other base of `no answer`."""


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (TransportError("no route to host"), 1),
        (ConnectionError("no route to host"), 1),
        (OSError(28, "No space left on device"), 2),
        (RuntimeError("this repository is gated"), 2),
    ],
)
def test_without_network_the_hub_is_asked_once_in_a_run(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, asked: int
) -> None:
    names: list[str] = []

    def fail(name: str, **_: Any) -> None:
        names.append(name)
        raise error

    monkeypatch.setattr(huggingface_hub, "list_repo_files", fail)
    for name in ("org/one", "org/two"):
        with pytest.raises(Unavailable, match=re.escape(str(error))):
            resolve(name, card="tiny", download=True)
    assert len(names) == asked
    forget_failures()
    with pytest.raises(Unavailable):
        resolve("org/one", card="tiny", download=True)
    assert len(names) == asked + 1


@pytest.mark.parametrize(
    "lacks", [UNET_WEIGHTS, "tokenizer", "tokenizer/tokenizer_config.json", "vae/config.json"]
)
def test_a_cache_that_lacks_a_part_is_unavailable(hub_cache: Path, tiny_checkpoint: Path, lacks: str) -> None:
    path = tiny_checkpoint / lacks
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    fill_cache(hub_cache, "org/tiny", tiny_checkpoint)
    with pytest.raises(Unavailable, match="only partly in the hub cache") as caught:
        resolve("org/tiny")
    assert lacks.split("/")[0] in str(caught.value.found)


@pytest.mark.parametrize("lacks", ["unet/config.json", "tokenizer", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_a_cache_that_lacks_a_configuration_lends_none(
    hub_cache: Path, tiny_checkpoint: Path, lacks: str, revision: str
) -> None:
    path = tiny_checkpoint / lacks
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    fill_cache(hub_cache, "org/tiny", tiny_checkpoint)
    file = tiny_checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    joined = {"base": f"org/tiny@{revision}", "file": str(file)}
    with pytest.raises(Unavailable, match="only partly in the hub cache"):
        resolve(joined)
    # What is not complete is asked for, and here nobody answers.
    with pytest.raises(Unavailable, match="cannot be fetched"):
        resolve(joined, download=True)


def test_a_repository_of_a_u_net_alone_stands_on_a_base(hub_cache: Path, tiny_checkpoint: Path) -> None:
    snapshot = fill_cache(hub_cache, "org/lone", tiny_checkpoint / "unet")
    checkpoint = resolve({"base": str(tiny_checkpoint), "unet": "org/lone"})
    assert checkpoint.part("unet") == snapshot
    verify(checkpoint)


def in_cache(cache: Path, folder: Path, *, absent: tuple[str, ...] = (), lacks: tuple[str, ...] = ()) -> None:
    """Lay out a folder as ``org/other``, of which the cache knows files to be absent and lacks others."""
    kept = cache.parent / f"kept-{len(lacks)}-{len(absent)}"
    shutil.copytree(folder, kept, ignore=lambda _, names: set(lacks).intersection(names))
    shutil.rmtree(cache / "models--org--other", ignore_errors=True)
    fill_cache(cache, "org/other", kept)
    for name in absent:
        file = cache / "models--org--other" / ".no_exist" / COMMIT / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


@pytest.fixture
def lone(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The folder of a U-Net with a scheduler of its own."""
    for name in ("unet", "scheduler"):
        shutil.copytree(tiny_checkpoint / name, tmp_path / "lone" / name)
    file = tmp_path / "lone" / "scheduler" / "scheduler_config.json"
    file.write_text(file.read_text().replace("0.012", "0.02"))
    return tmp_path / "lone"


UNTOLD = "the hub's cache does not tell whether org/other has "


@pytest.mark.parametrize("kind", ["unet", "lora"])
def test_a_note_says_where_the_cache_does_not_tell_which_scheduler_was_published(
    hub_cache: Path, pristine_checkpoint: Path, lone: Path, kind: str
) -> None:
    if kind == "lora":
        file = lone / "pytorch_lora_weights.safetensors"
        save_file({f"unet.conv_in.lora_{side}.weight": torch.zeros(shape) for side, shape in LORA}, file)
    spec = {"base": str(pristine_checkpoint), kind: "org/other"}

    def told() -> list[str]:
        return [note for note in resolve(spec).choices if note.startswith(UNTOLD)]

    in_cache(hub_cache, lone, lacks=(SCHEDULER.split("/")[0],))
    assert told() == [f"{UNTOLD}{SCHEDULER}: the scheduler is that of the base (--sdbench-download asks)"]
    in_cache(hub_cache, lone, lacks=(SCHEDULER.split("/")[0],), absent=(INDEX, SCHEDULER))
    assert told() == []
    in_cache(hub_cache, lone, absent=(INDEX,))
    assert told() == []
    in_cache(hub_cache, lone)
    assert [each.removeprefix(UNTOLD)[: len(INDEX)] for each in told()] == [INDEX] * (kind == "unet")


def test_a_whole_checkpoint_of_which_only_its_index_is_not_cached_is_incomplete(
    hub_cache: Path, tiny_checkpoint: Path
) -> None:
    in_cache(hub_cache, tiny_checkpoint, lacks=(INDEX,))
    with pytest.raises(Unavailable, match=r"only partly in the hub cache \(found 'no model_index.json'"):
        resolve({"base": str(tiny_checkpoint), "unet": "org/other"})


@pytest.mark.parametrize("kind", ["unet", "lora"])
def test_with_a_download_the_hub_is_asked_for_a_scheduler_that_the_cache_does_not_tell_of(
    hub_cache: Path, pristine_checkpoint: Path, lone: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "lora":
        file = lone / "pytorch_lora_weights.safetensors"
        save_file({f"unet.conv_in.lora_{side}.weight": torch.zeros(shape) for side, shape in LORA}, file)
    in_cache(hub_cache, lone, lacks=("scheduler",))
    spec = {"base": str(pristine_checkpoint), kind: f"org/other@{COMMIT}"}
    with pytest.warns(CachedCopy, match="org/other: the cached copy is taken as it is"):
        assert resolve(spec, download=True).part("scheduler").parent != lone
    forget_failures()
    snapshot = hub_cache / "models--org--other" / "snapshots" / COMMIT

    def fetch(*names: str, **_: Any) -> str:
        (snapshot / "scheduler").mkdir(exist_ok=True)
        shutil.copy(lone / SCHEDULER, snapshot / SCHEDULER)
        return str(snapshot / names[1] if len(names) > 1 else snapshot)

    listed = [path.relative_to(lone).as_posix() for path in lone.rglob("*") if path.is_file()]
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name, revision: listed)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    assert resolve(spec, download=True).config("scheduler")["beta_end"] == 0.02


def test_a_download_takes_one_format_of_each_component(
    hub_cache: Path, pristine_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [path for path in pristine_checkpoint.rglob("*") if path.is_file()]
    needed = [path.relative_to(pristine_checkpoint).as_posix() for path in files]
    other = ["v1-4.ckpt", "README.md", UNET_BIN, "safety_checker/model.safetensors"]
    asked: list[str] = []

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        return str(fill_cache(hub_cache, name, pristine_checkpoint))

    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name, revision: needed + other)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    verify(resolve(f"org/tiny@{COMMIT}", download=True))
    assert sorted(asked) == sorted(needed)


def test_a_download_of_a_repository_without_weights_is_an_error(
    hub_cache: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tiny_checkpoint / UNET_WEIGHTS).unlink()
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name, revision: ["model_index.json"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **options: str(tiny_checkpoint))
    with pytest.raises(CheckpointError, match="no unet"):
        resolve("org/tiny", download=True)


@pytest.mark.parametrize("index", ["safetensors.index.fp16.json", "safetensors.fp16.index.json"])
@pytest.mark.parametrize("shard", ["model.fp16-0000{}-of-00002.", "model-0000{}-of-00002.fp16."])
def test_shards_and_variants_are_chosen_as_from_pretrained_does(index: str, shard: str) -> None:
    shards = [f"unet/diffusion_pytorch_{shard.format(i)}safetensors" for i in (1, 2)]
    sharded = ["unet/config.json", f"unet/diffusion_pytorch_model.{index}", *shards]
    assert hub.wanted_files([*sharded, "unet/notes-00001-of-00002.safetensors"], ["unet"]) == sharded
    full = ["unet/config.json", "unet/diffusion_pytorch_model.bin"]
    assert hub.wanted_files([*sharded, full[1]], ["unet"]) == full
    assert hub.wanted_files(["config.json", "diffusion_pytorch_model.bin", "notes.txt"], ["unet"]) == [
        "config.json",
        "diffusion_pytorch_model.bin",
    ]


def test_of_another_pipeline_only_its_index_is_fetched() -> None:
    files = ["model_index.json", "unet/config.json", "text_encoder_2/config.json", UNET_WEIGHTS]
    assert hub.wanted_files(files, ["unet"]) == ["model_index.json"]


def test_cards_that_are_out_import_from_the_former_place() -> None:
    from pytest_sdbench import checkpoint as former

    assert (former.load_pipeline, former.resolve) == (load_pipeline, resolve)
