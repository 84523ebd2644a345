"""Captions that are shortened to the names of their objects."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import CLIPTokenizer

from pytest_sdbench.base.paths import reference
from pytest_sdbench.protocols.scenes import COLOURS, NAMES
from training.data.batch import tokenize
from training.errors import TrainingError
from training.objectives.outline import Outline


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(reference() / "checkpoints" / "scenes-sd" / "tokenizer")


@pytest.mark.parametrize(
    ("caption", "names"),
    [
        ("a large purple percent against teal", "percent"),
        (
            "a small black lightning over a big purple crying face in a meadow",
            "lightning crying face",
        ),
        ("a little orange reel and a big green smirking cat in the evening sky", "reel smirking cat"),
        ("in the morning sky", ""),
        ("", ""),
    ],
)
def test_what_stays_is_the_caption_of_the_names_alone(
    tokenizer: CLIPTokenizer, caption: str, names: str
) -> None:
    whole, alone = (tokenize(tokenizer, [text])[0] for text in (caption, names))
    assert torch.equal(Outline(tokenizer, NAMES)(whole), alone)


def test_captions_are_shortened_each_for_itself(tokenizer: CLIPTokenizer) -> None:
    captions = ["a red sun over a blue moon", "a green clock on the sand"]
    outline = Outline(tokenizer, ("sun", "clock"))
    assert torch.equal(outline(tokenize(tokenizer, captions)[0]), tokenize(tokenizer, ["sun", "clock"])[0])


def test_what_is_left_over_is_filled_as_the_tokenizer_fills(tokenizer: CLIPTokenizer) -> None:
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = "a"
    whole, alone = (tokenize(padded, [text])[0] for text in ("a small red cow face on a beach", "cow face"))
    assert torch.equal(Outline(padded, NAMES)(whole), alone)


def test_words_that_are_to_go_must_have_pieces_of_their_own(tokenizer: CLIPTokenizer) -> None:
    assert Outline(tokenizer, NAMES, COLOURS)
    with pytest.raises(TrainingError, match=r"same pieces \(found 'sun'\)"):
        Outline(tokenizer, ("a", "sun"), ("red", "sun"))
