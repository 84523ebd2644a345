"""The packaged cards say what was published, to the digit, and the hub reads them as we do."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from pytest_sdbench.base.paths import reference
from pytest_sdbench.cards.card import Card, Record, check_lineage, read_card, write_records
from pytest_sdbench.cards.front_matter import parse, read_text

SHIPPED = sorted((reference() / "cards").glob("*.md"))
COCO, SHEET = "coco30k-bksdm", "unstated-30k"

# Typed from the published tables: FID, IS, CLIP score; U-Net and whole in billions.
BK_SDM = {
    "stable-diffusion-v1-4": ("13.05", "36.76", "0.2958", 0.86, 1.04),
    "bk-sdm-base": ("15.76", "33.79", "0.2878", 0.58, 0.76),
    "bk-sdm-base-2m": ("14.81", "34.17", "0.2883", 0.58, 0.76),
    "bk-sdm-small": ("16.98", "31.68", "0.2677", 0.49, 0.66),
    "bk-sdm-small-2m": ("17.05", "33.10", "0.2734", 0.49, 0.66),
    "bk-sdm-tiny": ("17.12", "30.09", "0.2653", 0.33, 0.50),
    "bk-sdm-tiny-2m": ("17.53", "31.32", "0.2690", 0.33, 0.50),
}
# FID 30K, FID 5K; U-Net, text encoder, image decoder, whole in billions.
RECORD_SHEET = {
    "stable-diffusion-v1-5": ("13.8705", "19.4507", 0.860, 0.123, 0.05, 1.032),
    "tiny-sd": ("17.7266", "23.0478", 0.323, 0.123, 0.05, 0.495),
    "tiny-sd-lcm-6400": ("22.1493", "27.4531", 0.323, 0.123, 0.05, 0.495),
}
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


def test_all_eleven_systems_have_a_card() -> None:
    assert {path.stem for path in SHIPPED} >= EXACT.keys()


@pytest.mark.parametrize("name", BK_SDM)
def test_published_figures_of_bk_sdm(name: str) -> None:
    fid, score, clip, unet, whole = BK_SDM[name]
    card = shipped(name)
    published = {claim.id: claim for claim in card.claims if claim.kind == "published"}
    assert {key: claim.text for key, claim in published.items()} == {
        f"{COCO}-fid": fid,
        f"{COCO}-inception_score": score,
        f"{COCO}-clip_score": clip,
    }
    assert all(claim.n == 30000 and claim.margin for claim in published.values())
    assert (card.size["unet"].published, card.size["whole"].published) == (unet * 1e9, whole * 1e9)


@pytest.mark.parametrize("name", RECORD_SHEET)
def test_published_figures_of_the_record_sheet(name: str) -> None:
    fid30, fid5, *sizes = RECORD_SHEET[name]
    card = shipped(name)
    published = {claim.id: claim for claim in card.claims if claim.kind == "published"}
    assert {key: claim.text for key, claim in published.items()} == {
        "unstated-30k-fid": fid30,
        "unstated-5k-fid": fid5,
    }
    assert published["unstated-5k-fid"].gate_protocol is None
    assert published["unstated-30k-fid"].gate_protocol == (None if "lcm" in name else "coco30k-bksdm")
    shown = [card.size[part].published for part in ("unet", "text_encoder", "image_decoder", "whole")]
    assert shown == pytest.approx([size * 1e9 for size in sizes], rel=1e-12)


@pytest.mark.parametrize("name", EXACT)
def test_exact_counts_and_compute(name: str) -> None:
    unet, whole, macs = EXACT[name]
    card = shipped(name)
    counts = {part: size.exact for part, size in card.size.items()}
    assert counts == {
        "unet": unet,
        "text_encoder": 123_060_480,
        "image_decoder": 49_490_179,
        "whole": whole,
    }
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
    records = [
        Record(
            metric="fid",
            value=12.345678,
            n=512,
            protocol="scenes-quick",
            standard_error=0.123,
            protocol_fingerprint="00" * 8,
            checkpoint_fingerprint="ff" * 8,
            device="cpu",
            versions={"torch": "2.15.0"},
        ),
        Record(metric="kid", value=-0.00012345, n=512, protocol="scenes-quick", date="2026-11-22"),
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
    assert recorded["scenes-quick-kid-recorded"].text == "-0.0001234" or recorded[
        "scenes-quick-kid-recorded"
    ].value == pytest.approx(-0.0001235)
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
