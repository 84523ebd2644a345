"""A drafted card can be read at once, by us and by the hub, and its counts are right."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.numpy import save_file

from pytest_sdbench.base.errors import CardError, CheckpointError, Unavailable
from pytest_sdbench.base.paths import reference
from pytest_sdbench.cards.card import check_lineage, read_card
from pytest_sdbench.cards.draft import draft
from pytest_sdbench.cards.front_matter import BLOCK
from pytest_sdbench.commands.main import main
from pytest_sdbench.models.architectures import ARCHITECTURES
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.models.counts import Macs
from pytest_sdbench.models.skeleton import architecture_key
from tests.tiny_checkpoint import make_checkpoint


def count(file: Path, prefix: str = "") -> int:
    """Count stored elements with safetensors alone."""
    with safe_open(file, "numpy") as tensors:
        shapes = {name: tensors.get_slice(name).get_shape() for name in sorted(tensors.keys())}
    return sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(prefix))


@pytest.fixture(autouse=True)
def quick_macs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Count multiply-accumulates in one test alone: it costs a forward pass, and others test the counting."""
    if request.node.originalname != "test_a_draft_is_a_card_at_once":
        monkeypatch.setattr(
            "pytest_sdbench.models.counts.unet_macs", lambda _: Macs(255_400_000_000, 217_600_000_000)
        )


LORA = "pytorch_lora_weights.safetensors"


def small_lora(width: int = 16) -> dict[str, np.ndarray[Any, Any]]:
    """Return a LoRA of one layer, which fits the tiny checkpoint at this width."""
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k"
    return {f"{layer}.lora_A.weight": np.zeros((1, width)), f"{layer}.lora_B.weight": np.zeros((16, 1))}


def drafted(folder: Path, out: Path | None = None) -> Path:
    """Write the draft of a checkpoint, by default into its folder."""
    path = out or folder / "README.md"
    path.write_text(draft(folder, out))
    return path


def test_a_draft_is_a_card_at_once(tiny_checkpoint: Path) -> None:
    folder = tiny_checkpoint
    readme = drafted(folder)
    card = read_card(readme)
    check_lineage(card)
    sizes = {name: size.exact for name, size in card.size.items()}
    assert sizes == {
        "unet": count(folder / "unet" / "diffusion_pytorch_model.safetensors"),
        "text_encoder": count(folder / "text_encoder" / "model.safetensors"),
        "image_decoder": count(folder / "vae" / "diffusion_pytorch_model.safetensors", "decoder."),
        "whole": sum(value for name, value in sizes.items() if name != "whole" and value),
    }
    assert (card.name, card.title, card.checkpoint) == (folder.name, folder.name, "./")
    assert resolve(card.checkpoint, near=readme.parent).folder == folder.resolve()
    assert card.protocols == card.records == ()
    assert card.unet_macs
    assert isinstance(card.architecture, dict)
    config = json.loads((folder / "unet" / "config.json").read_text())
    assert architecture_key(card.architecture) == architecture_key(config)
    theirs = ModelCard.load(readme).data.to_dict()
    assert theirs["sdbench"]["architecture"] == card.architecture
    assert "pytest --sdbench" in readme.read_text()
    assert max(len(line) for line in readme.read_text().splitlines()) <= 110


def test_the_commented_example_is_valid_once_filled_in(tiny_checkpoint: Path) -> None:
    text = draft(tiny_checkpoint)
    front = text.split("---\n")[1]
    example = "".join(line[2:] for line in front.splitlines(True) if line.startswith("# "))
    index = yaml.safe_load(example)
    assert index["model-index"][0]["name"] == tiny_checkpoint.name
    path = tiny_checkpoint / "README.md"
    filled = text.replace("# - ", "- ").replace("# model-index", "model-index").replace("#   ", "  ")
    path.write_text(filled.replace("#     ", "    "))
    assert ["zero" in str(problem) for problem in read_card(path).problems] == [True]
    path.write_text(path.read_text().replace("value: 0.0", "value: 16.98"))
    assert [claim.id for claim in read_card(path).claims] == ["coco30k-bksdm-fid"]


def test_a_known_architecture_is_named(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The counts of a full-size network are others' tests: only the recognition is under test here.
    monkeypatch.setattr("pytest_sdbench.models.counts.component_sizes", lambda _: {"unet": 482346884})
    saved = {"_class_name": "UNet2DConditionModel", "_name_or_path": "CompVis/stable-diffusion-v1-4"}
    config = json.dumps({**ARCHITECTURES["bk-sdm-small"], **saved, "dropout": 0.0})
    (tiny_checkpoint / "unet" / "config.json").write_text(config)
    card = read_card(drafted(tiny_checkpoint))
    check_lineage(card)
    assert card.architecture == "bk-sdm-small"
    assert card.base == card.baseline == "stable-diffusion-v1-4"
    assert card.protocols == ("coco30k-bksdm",)


def test_a_network_without_mid_block_stays_without(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "no mid: block", unet={"mid_block_type": None})
    beside = drafted(folder, tmp_path / "card.md")
    assert read_card(beside).checkpoint == "./no mid: block"
    architecture = read_card(drafted(folder)).architecture
    assert isinstance(architecture, dict)
    assert architecture["mid_block_type"] is None
    built = json.loads((folder / "unet" / "config.json").read_text())
    assert architecture_key(architecture) == architecture_key(built)


@pytest.mark.parametrize("written_by", ["transformers 4", "transformers 5"])
def test_a_scenes_checkpoint_gets_the_scenes_protocol(tiny_checkpoint: Path, written_by: str) -> None:
    scenes, tokenizer = reference() / "checkpoints" / "scenes-sd" / "tokenizer", tiny_checkpoint / "tokenizer"
    shutil.rmtree(tokenizer)
    shutil.copytree(scenes, tokenizer)
    (tokenizer / ("tokenizer.json" if written_by == "transformers 4" else "vocab.json")).unlink()
    assert read_card(drafted(tiny_checkpoint)).protocols == ("scenes-quick",)


HUB = """---
license:   mit   # theirs
tags: [ a,b ]
base_model: segmind/tiny-sd
model-index:
- name: Theirs
  results:
  - task: {type: text-to-image}
    dataset: {type: coco, name: COCO, config: coco30k-bksdm}
    metrics:
    - {type: fid, value: 17.30}
---

# Theirs

Body.
"""


@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_a_hub_card_keeps_every_line_and_gains_the_block(ending: str, tiny_checkpoint: Path) -> None:
    path = tiny_checkpoint / "README.md"
    path.write_bytes(HUB.replace("\n", ending).encode())
    text = draft(tiny_checkpoint)
    before, after = HUB.split("\n"), text.split(ending)
    at = after.index(next(line for line in after if line.startswith("sdbench:")))
    assert after[:at] == before[:at]
    assert after[-6:] == before[-6:]
    assert text.count("\r\n") == (text.count("\n") if ending == "\r\n" else 0)
    path.write_bytes(text.encode())
    card = read_card(path)
    assert (card.title, card.license, card.base) == ("Theirs", "mit", "tiny-sd")
    assert [(claim.id, claim.text) for claim in card.claims] == [("coco30k-bksdm-fid", "17.30")]
    assert ModelCard.load(path).data.eval_results


def test_a_readme_without_front_matter_keeps_its_text(tiny_checkpoint: Path) -> None:
    path = tiny_checkpoint / "README.md"
    path.write_text("# Ours\n\nText.\n")
    assert drafted(tiny_checkpoint).read_text().endswith("---\n\n# Ours\n\nText.\n")
    assert read_card(path).title == "Ours"
    # And not over a card.
    with pytest.raises(CardError, match=r"a card already.*pytest --sdbench"):
        draft(tiny_checkpoint)


def test_the_readme_of_the_folder_itself_can_be_made_the_card(tiny_checkpoint: Path) -> None:
    path = tiny_checkpoint / "README.md"
    path.write_text("---\nlicense: mit\n---\n# Ours\n")
    assert main(["draft", str(tiny_checkpoint), "--out", str(path)]) == 0
    assert (read_card(path).license, read_card(path).title) == ("mit", "Ours")
    other = tiny_checkpoint / "other.md"
    other.write_text("# Another\n")
    assert main(["draft", str(tiny_checkpoint), "--out", str(other)]) == 2
    assert other.read_text() == "# Another\n"


def test_a_card_elsewhere_tells_the_way_to_the_folder(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "cards").mkdir()
    out = drafted(tiny_checkpoint, tmp_path / "cards" / "mine.md")
    card = read_card(out)
    assert card.checkpoint == f"../{tiny_checkpoint.name}"
    assert resolve(card.checkpoint, near=out.parent).folder == tiny_checkpoint.resolve()


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not a checkpoint .* no model_index\.json") as caught:
        draft(tmp_path)
    assert caught.value.file == tmp_path


@pytest.mark.parametrize("kind", ["unet", "lora"])
def test_what_stands_on_a_base_is_drafted_on_it(kind: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    if kind == "unet":
        shutil.copytree(tiny_checkpoint / "unet", folder / "unet")
    else:
        folder.mkdir()
        save_file(small_lora(), folder / LORA)
    readme, out = folder / "README.md", tmp_path / "cards" / "mine.md"
    with pytest.raises(CheckpointError, match="alone, and nothing says which checkpoint") as caught:
        draft(folder)
    assert (caught.value.file, caught.value.key) == (readme, "base_model")
    readme.write_text(f"---\nbase_model: ../{tiny_checkpoint.name}\n---\n# Mine\n")
    out.parent.mkdir()
    card = read_card(drafted(folder, out))
    assert card.checkpoint == {"base": f"../{tiny_checkpoint.name}", kind: "../mine"}
    assert card.size["unet"].exact == count(tiny_checkpoint / "unet" / "diffusion_pytorch_model.safetensors")
    own = read_card(drafted(folder))
    assert own.checkpoint == {"base": f"../{tiny_checkpoint.name}", kind: "./"}


def test_a_lora_that_cannot_be_fused_gets_no_card(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "README.md").write_text(f"---\nbase_model: ../{tiny_checkpoint.name}\n---\n# Mine\n")
    scale = {"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k.lora_magnitude_vector": np.ones(16)}
    in_peft = {
        f"base_model.model.{name.removeprefix('unet.')}": value for name, value in small_lora().items()
    }
    for tensors, told in (
        (small_lora() | scale, "DoRA, LoHa, LoKr and trained biases are not supported"),
        (small_lora(width=24), "layers of the LoRA have other shapes than"),
        (in_peft, "an adapter in peft's own form"),
    ):
        save_file(tensors, folder / LORA)
        with pytest.raises(CheckpointError, match=told) as caught:
            draft(folder)
        assert caught.value.file == folder / LORA


def test_a_unet_that_does_not_fit_its_base_gets_no_card(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint / "unet", tmp_path / "mine")
    config = tmp_path / "mine" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"cross_attention_dim": 24}))
    (tmp_path / "mine" / "README.md").write_text(f"---\nbase_model: ../{tiny_checkpoint.name}\n---\n")
    with pytest.raises(CheckpointError, match="unet and text_encoder do not fit together"):
        draft(tmp_path / "mine")


@pytest.mark.parametrize("kind", ["unet", "lora"])
@pytest.mark.parametrize(
    ("base", "remedy"),
    [
        ("nobody/nothing", "Fetch it: hf download nobody/nothing. Or write the way to a folder as"),
        ("nobody/nothing@v1", "Fetch it: hf download nobody/nothing --revision v1. Or"),
        ("../nothing", "Put the checkpoint there, or write the way to a folder as `base_model`"),
    ],
)
def test_how_to_get_a_missing_base_is_told(
    kind: str, base: str, remedy: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    if kind == "unet":
        shutil.copytree(tiny_checkpoint / "unet", folder)
    else:
        folder.mkdir()
        save_file(small_lora(), folder / LORA)
    (folder / "README.md").write_text(f"---\nbase_model: {base}\n---\n# Mine\n")
    with pytest.raises((CheckpointError, Unavailable)) as caught:
        draft(folder)
    assert remedy in str(caught.value)
    assert (caught.value.file, caught.value.key) == (folder / "README.md", "base_model")
    assert "--sdbench" not in str(caught.value)


@pytest.mark.parametrize("said", ["[a/b, c/d]", "Stable Diffusion", "1", "[]"])
def test_a_base_that_names_no_checkpoint_is_none(said: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint / "unet", tmp_path / "mine" / "unet")
    (tmp_path / "mine" / "README.md").write_text(f"---\nbase_model: {said}\n---\n# Mine\n")
    with pytest.raises(CheckpointError, match="nothing says which checkpoint it stands on"):
        draft(tmp_path / "mine")


FOREIGN = "{task: {type: t}, dataset: {type: a, name: A}, metrics: [{type: wer, value: 3}]}"
KEPT = {
    "braces": ("---\n{}\n---\n\n# T\n", {}),
    "braces and comments": ("---\n# fill in\n{ }  # later\n---\n\n# T\n", {}),
    "comments": ("---\n# fill in later\n---\n\n# T\n", {}),
    "null": ("---\n~\n---\n\n# T\n", {}),
    "a metric of others": (
        f"---\nmodel-index: [{{name: M, results: [{FOREIGN}]}}]\n---\n\n# T\n",
        {"model-index"},
    ),
    "byte order mark": ("\ufeff---\nlicense: mit\n---\n\n# T\n", {"license"}),
    "four dashes": ("----\nlicense: mit\n----\n\n# T\n", {"license"}),
    "four dashes and three": ("----\nlicense: mit\n---\n\n# T\n", {"license"}),
    "spaces behind dashes": ("--- \nlicense: mit\n---\t\n\n# T\n", {"license"}),
    "no body": ("---\nlicense: mit\n---", {"license"}),
    "no final newline": ("---\nlicense: mit\n---\n\n# T", {"license"}),
    "a text at the end": ("---\nnote: |\n  one\n---\n\n# T\n", {"note"}),
    "newlines at the end": ("---\nnote: >+\n  one\n\n\n---\n# T\n", {"note"}),
    "indented": ("---\n  license: mit\n  tags: [a]\n---\n\n# T\n", {"license", "tags"}),
    "the end of a document": ("---\nlicense: mit\n...\n---\n\n# T\n", {"license"}),
    "rules in the body": ("---\nlicense: mit\n---\n\n# T\n\n---\n\nmore\n\n----\n", {"license"}),
    "anchors": ("---\nx: &a [1]\ny: *a\n---\n\n# T\n", {"x", "y"}),
    "not a number": ("---\nx: .nan\n---\n\n# T\n", {"x"}),
}
NEW = {"library_name", "pipeline_tag"}
KEPT |= {
    "nothing": ("---\n---\n\n# T\n", NEW),
    "no front matter": ("\ufeff# T\n\n---\n\nmore\n\n---\n", NEW),
    "a rule below nothing": ("---\n---\n# T\n\n---\nmore\n", NEW),
    "code first": ("\n    import torch\n\n# T\n", NEW),
}


@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("case", KEPT)
def test_a_draft_says_all_that_was_there(case: str, ending: str, tiny_checkpoint: Path) -> None:
    text, keys = KEPT[case]
    text = text.replace("\n", ending)
    readme = tiny_checkpoint / "README.md"
    readme.write_bytes(text.encode())
    new = draft(tiny_checkpoint)
    readme.write_bytes(new.encode())
    assert read_card(readme).size["unet"].exact
    assert not [problem for problem in read_card(readme).problems if problem.fails]
    # As the hub finds it.
    block = BLOCK.match(new)
    assert block
    front = yaml.safe_load(block.group(2))
    assert set(front) == {*keys, "sdbench"}
    assert repr(ModelCard.load(readme).data.to_dict()["sdbench"]) == repr(front["sdbench"])
    old = BLOCK.match(text) if keys != NEW else None
    before = (yaml.safe_load(old.group(2)) if old else None) or {}
    assert repr({key: front[key] for key in before}) == repr(before)
    assert new.endswith(text[text.index("# T") :] if "# T" in text else "---" + ending)
    assert "import torch" not in text or f"{ending}    import torch" in new
    assert all(line.strip(" \t{}~.-\ufeff") in new for line in text.splitlines())
    assert new.count("\r\n") == (new.count("\n") if ending == "\r\n" and ending in text else 0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("---\n{license: mit}\n---\n\n# T\n", "plain `key: value` lines"),
        ("---\nlicense: a: b\n---\n\n# T\n", "Correct the YAML"),
        ("---\n- a\n---\n\n# T\n", "key: value"),
        ("---\nmodel_index: []\n---\n\n# T\n", "Did you mean 'model-index'"),
        ("---\n%YAML 1.1\n---\nlicense: mit\n---\n\n# T\n", "Correct the YAML|plain `key"),
    ],
)
def test_what_cannot_keep_all_beside_a_block_is_refused(text: str, told: str, tiny_checkpoint: Path) -> None:
    (tiny_checkpoint / "README.md").write_text(text, encoding="utf-8")
    with pytest.raises(CardError, match=told):
        draft(tiny_checkpoint)


@pytest.mark.parametrize(
    ("scheduler", "scenes", "protocols"),
    [
        ("LCMScheduler", True, ("scenes-lcm4-quick",)),
        ("EulerDiscreteScheduler", True, ()),
        ("PNDMScheduler", False, ("coco30k-bksdm",)),
        ("DDIMScheduler", False, ()),
    ],
)
def test_a_drafted_card_names_what_its_scheduler_can_be_drawn_under(
    scheduler: str, scenes: bool, protocols: tuple[str, ...], tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path / "own", unet={"sample_size": 8 if scenes else 64})
    if scenes:
        vocabulary = reference() / "checkpoints" / "scenes-sd" / "tokenizer" / "vocab.json"
        shutil.copy(vocabulary, folder / "tokenizer" / "vocab.json")
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": ["diffusers", scheduler]}))
    assert read_card(drafted(folder)).protocols == protocols
