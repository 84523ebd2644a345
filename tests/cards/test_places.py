"""The line of a claim is the one that a person would point at."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_sdbench.base.errors import CardError
from pytest_sdbench.base.paths import reference
from pytest_sdbench.cards.card import read_card_text
from pytest_sdbench.cards.front_matter import parse
from pytest_sdbench.cards.places import claim_keys, line_at, line_of_fault

CARDS = sorted((reference() / "cards").glob("*.md"))
TEXT = """\
---
license: apache-2.0
# What was published.
model-index:
- name: mine
  results:
  - task: {type: text-to-image}
    dataset: {type: scenes, name: "Scenes \u2028 with an end of line of YAML alone", config: scenes-quick}
    metrics:
    - type: fid
      # The figure stands below its metric.
      value: 1.02
    - {type: kid, name: KID, value: 0.0026}
    - type: sfid
      value: 3
    - type: clip_score
      value: high
sdbench:
  baseline: scenes-sd
  size:
    unet: {exact: 10}
    whole:
      exact: 20
  compute: {unet_macs: 5.0e+9}
  speed:
    unet_ratio: {max: 0.72, source: own record}
  margins:
    fid: 0.3
  records:
  - {protocol: scenes-quick, metric: fid, value: 1.0171, n: 512}
---
# Mine
"""


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_the_line_of_a_claim_has_its_figure(path: Path, ending: str) -> None:
    text = path.read_text(encoding="utf-8").replace("\n", ending)
    card, lines = read_card_text(path, text), text.split("\n")
    places = [line_at(parse(path, text), claim.place) for claim in card.claims]
    assert len(set(places)) == len(card.claims)
    for claim, line in zip(card.claims, places, strict=True):
        assert f"value: {claim.text}" in lines[line - 1]
        assert claim_keys(card, "quality", claim.id) == claim.place


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("test", "name", "said"),
    [
        ("quality", "scenes-quick-fid", "value: 1.02"),
        ("quality", "scenes-quick-kid", "KID"),
        ("quality", "scenes-quick-fid-recorded", "value: 1.0171"),
        ("quality", "model-index[0].results[0].metrics[2].type", "type: sfid"),
        ("quality", "scenes-quick-clip_score", "value: high"),
        ("quality", "scenes-quick-psnr", "margins:"),
        ("size", "unet", "unet: {exact: 10}"),
        ("size", "whole", "exact: 20"),
        ("size", "text_encoder", "size:"),
        ("compute", "", "unet_macs"),
        ("speed", "", "max: 0.72"),
        ("memory", "", "sdbench:"),
    ],
)
def test_what_a_test_judges_has_a_line(test: str, name: str, said: str, ending: str) -> None:
    path, text = Path("mine.md"), TEXT.replace("\n", ending)
    front = parse(path, text)
    keys = claim_keys(read_card_text(path, text), test, name, ("scenes-quick", "psnr"))
    line = line_of_fault(front, keys) if isinstance(keys, str) else line_at(front, keys)
    assert said in text.split("\n")[line - 1]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("value: 1.02", "value: [1.02", ""),
        ("  compute:", "  computes:", "computes"),
        ("exact: 20", "exact: -20", "exact: -20"),
        ("license: apache-2.0", "license: apache-2.0\nlicense: mit", "license: mit"),
        ("speed:", "speed: [", ""),
    ],
)
def test_what_is_wrong_with_a_card_has_a_line(old: str, new: str, said: str) -> None:
    path, text = Path("mine.md"), TEXT.replace(old, new)
    with pytest.raises(CardError) as raised:
        read_card_text(path, text)
    front = None if "YAML" in str(raised.value) or "twice" in str(raised.value) else parse(path, text)
    line = line_of_fault(front, raised.value.key)
    assert said in text.split("\n")[line - 1]
    assert 1 <= line <= text.count("\n")
