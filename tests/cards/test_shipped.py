"""The packaged cards say what was published, to the digit, and the hub reads them as we do."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from pytest_sdbench.base.paths import reference
from pytest_sdbench.cards.card import Card, Record, check_lineage, read_card, write_records
from pytest_sdbench.cards.front_matter import parse, read_text

SHIPPED = sorted((reference() / "cards").glob("*.md"))
COCO = "coco30k-bksdm"

# Of the published figures themselves, the tables of tests/report/test_report.py are typed.
RECORD_SHEET = ("stable-diffusion-v1-5", "tiny-sd", "tiny-sd-lcm-6400")
# U-Net counts, whole counts, and billions of MACs with attention.
EXACT = {
    "stable-diffusion-v1-4": (859_520_964, 1_032_071_623, 401.6),
    "stable-diffusion-v1-5": (859_520_964, 1_032_071_623, 401.6),
    "bk-sdm-base": (579_384_964, 751_935_623, 261.5),
    "bk-sdm-base-2m": (579_384_964, 751_935_623, 261.5),
    "bk-sdm-small": (482_346_884, 654_897_543, 255.4),
    "bk-sdm-small-2m": (482_346_884, 654_897_543, 255.4),
    "bk-sdm-tiny": (323_384_964, 495_935_623, 242.8),
    "bk-sdm-tiny-2m": (323_384_964, 495_935_623, 242.8),
    "tiny-sd": (323_384_964, 495_935_623, 242.8),
    "portrait-finetuned": (323_384_964, 495_935_623, 242.8),
    "tiny-sd-lcm-6400": (323_466_884, 496_017_543, 242.8),
}


def shipped(name: str) -> Card:
    return read_card(reference() / "cards" / f"{name}.md")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_hub_reads_the_same_figures(path: Path) -> None:
    ours, theirs = read_card(path), ModelCard.load(path)
    check_lineage(ours)
    published = [(claim.metric, claim.value) for claim in ours.claims if claim.kind == "published"]
    results = theirs.data.eval_results or []
    assert [(result.metric_type, result.metric_value) for result in results] == published
    for claim, result in zip(ours.claims, results, strict=False):
        assert result.dataset_config == claim.protocol
        if claim.source is not None and claim.source.url:
            assert (result.source_name, result.source_url) == (claim.source.name, claim.source.url)
    block = theirs.data.to_dict()["sdbench"]
    for name, size in ours.size.items():
        assert block["size"][name]["exact"] == size.exact
        assert block["size"][name].get("published") == size.published
    assert ours.title in theirs.text


@pytest.mark.parametrize("name", [name for name in EXACT if "bk-sdm" in name or name.endswith("v1-4")])
def test_figures_of_bk_sdm_are_of_its_protocol_and_have_margins(name: str) -> None:
    published = {claim.id: claim for claim in shipped(name).claims if claim.kind == "published"}
    assert list(published) == [f"{COCO}-fid", f"{COCO}-inception_score", f"{COCO}-clip_score"]
    assert all(claim.n == 30000 and claim.margin for claim in published.values())


@pytest.mark.parametrize("name", RECORD_SHEET)
def test_figures_of_the_record_sheet_are_assumed_to_be_of_that_protocol(name: str) -> None:
    gates = {claim.id: claim.gate_protocol for claim in shipped(name).claims if claim.kind == "published"}
    assert gates == {"unstated-30k-fid": None if "lcm" in name else COCO, "unstated-5k-fid": None}


@pytest.mark.parametrize("name", EXACT)
def test_exact_counts_and_compute(name: str) -> None:
    unet, whole, macs = EXACT[name]
    card = shipped(name)
    parts = {"unet": unet, "text_encoder": 123_060_480, "image_decoder": 49_490_179, "whole": whole}
    assert {part: size.exact for part, size in card.size.items()} == parts
    assert card.unet_macs == pytest.approx(macs * 1e9, rel=1e-12)


@pytest.mark.parametrize("name", EXACT)
def test_every_student_carries_a_speed_claim_with_its_reason(name: str) -> None:
    card = shipped(name)
    if card.base is None:
        assert card.speed is None
        return
    assert card.baseline == card.base
    assert card.speed is not None
    assert card.speed.source == "own record"
    assert card.speed.reason
    # A claim below the ratio of the work itself could not be met.
    baseline = shipped(card.baseline)
    assert card.unet_macs is not None
    assert baseline.unet_macs is not None
    assert card.speed.max > card.unet_macs / baseline.unet_macs


@pytest.mark.parametrize("name", EXACT)
def test_the_body_records_the_training_facts(name: str) -> None:
    body = parse(shipped(name).path, read_text(shipped(name).path)).body
    for fact in ("Training data:", "Hardware:", "Batch:", "Optimiser:", "Steps:", "Resolution:", "Licence:"):
        assert f"- {fact}" in body, fact


@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_recording_changes_only_the_lines_of_the_records(path: Path, ending: str, tmp_path: Path) -> None:
    before = path.read_bytes().replace(b"\n", ending.encode())
    copy = tmp_path / path.name
    copy.write_bytes(before)
    about = {"n": 512, "protocol": "scenes-quick", "protocol_fingerprint": "00" * 8, "device": "cpu"}
    records = [
        Record(metric="fid", value=12.345678, standard_error=0.123, versions={"torch": "2.15.0"}, **about),
        Record(metric="kid", value=-0.00012345, date="2026-11-22", **about),
    ]
    diff = write_records(copy, records)
    after = copy.read_bytes()
    assert around_records(after.decode(), ending) == around_records(before.decode(), ending)
    # Records of other scores stay as they are, comments included.
    removed = [line[1:] for line in diff.splitlines()[2:] if line.startswith("-")]
    kept = [line for line in before.decode().split(ending) if line not in removed]
    lines = iter(after.decode().split(ending))
    assert all(line in lines for line in kept)
    assert after.count(b"\r\n") == (after.count(b"\n") if ending == "\r\n" else 0)
    recorded = {claim.id: claim for claim in read_card(copy).claims if claim.kind == "recorded"}
    assert recorded["scenes-quick-fid-recorded"].value == 12.3457
    assert recorded["scenes-quick-kid-recorded"].value == pytest.approx(-0.0001234, abs=1.01e-7)
    published = [(c.id, c.text) for c in read_card(path).claims if c.kind == "published"]
    assert [(c.id, c.text) for c in read_card(copy).claims if c.kind == "published"] == published
    ModelCard.load(copy)
    assert write_records(copy, records) == ""
    assert copy.read_bytes() == after


def around_records(text: str, ending: str) -> tuple[list[str], list[str]]:
    """Return the lines before the records of a card and those after them."""
    lines = text.split(ending)
    start = next(number for number, line in enumerate(lines) if line.startswith("  records:"))
    end = start + 1
    while lines[end].startswith(("  - ", "    ")):
        end += 1
    return lines[:start], lines[end:]
