"""A U-Net on a base: what lies beside it is not passed over in silence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pytest_sdbench.base.errors import CheckpointError
from pytest_sdbench.models.checkpoint import Checkpoint, resolve


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def both_ways(base: Path, folder: Path) -> list[Checkpoint]:
    """Resolve a folder as the U-Net of a card, and as what replaces a card's checkpoint."""
    return [resolve({"base": str(base), "unet": str(folder)}), resolve(str(base), weights=folder)]


@pytest.mark.parametrize("lacks", [("vae", "tokenizer", "scheduler"), ()])
@pytest.mark.parametrize("way", ["unet", "weights"])
def test_components_that_may_have_been_trained_are_not_replaced_by_the_base_s(
    pristine_checkpoint: Path, tiny_checkpoint: Path, lacks: tuple[str, ...], way: str
) -> None:
    # As train_dreambooth --train_text_encoder leaves a step, and a copy that lost its index.
    (tiny_checkpoint / "model_index.json").unlink()
    for name in lacks:
        shutil.rmtree(tiny_checkpoint / name)
    base = str(pristine_checkpoint)
    spec = {"base": base, "unet": str(tiny_checkpoint)} if way == "unet" else base
    with pytest.raises(CheckpointError, match=r"model_index.json.*found 'text_encoder.*save_pretrained"):
        resolve(spec, weights=tiny_checkpoint if way == "weights" else None)
    alone = resolve(str(pristine_checkpoint), weights=tiny_checkpoint / "unet")
    assert alone.part("unet") == tiny_checkpoint / "unet"


def test_a_u_net_that_predicts_velocity_is_not_drawn_as_one_that_predicts_noise(
    pristine_checkpoint: Path, tiny_checkpoint: Path
) -> None:
    edit_json(tiny_checkpoint / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    base, spec = str(pristine_checkpoint), {"base": str(pristine_checkpoint), "unet": str(tiny_checkpoint)}
    says = (
        r"prediction_type: .*predicts v_prediction.*drawn as one of epsilon.*give .*tiny-sd, without a base"
    )
    with pytest.raises(CheckpointError, match=says):
        resolve(spec)
    with pytest.raises(CheckpointError, match=says):
        resolve(base, weights=tiny_checkpoint / "unet")
    assert resolve(base, weights=tiny_checkpoint).part("scheduler") == tiny_checkpoint / "scheduler"


def test_a_u_net_that_was_published_with_another_scheduler_has_a_note(
    pristine_checkpoint: Path, tiny_checkpoint: Path
) -> None:
    file = tiny_checkpoint / "scheduler" / "scheduler_config.json"
    assert [each.choices for each in both_ways(pristine_checkpoint, tiny_checkpoint)] == [(), ()]
    edit_json(file, beta_end=0.02)
    found = resolve(str(pristine_checkpoint), weights=tiny_checkpoint / "unet")
    told = "the scheduler is not the one beside the U-Net: PNDMScheduler with another beta_end"
    assert told in found.choices
    edit_json(file, _class_name="LCMScheduler")
    found = resolve({"base": str(pristine_checkpoint), "unet": str(tiny_checkpoint)})
    assert "the scheduler is not the one beside the U-Net: PNDMScheduler, not LCMScheduler" in found.choices
    # What replaces it has a note of its own, and not that of the one that is gone.
    assert resolve(found, weights=pristine_checkpoint / "unet").choices == ()
