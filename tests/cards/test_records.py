"""What is recorded goes into the card, and nothing else in the file moves."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_sdbench.base.errors import CardError
from pytest_sdbench.cards import edit as module
from pytest_sdbench.cards.card import Record, read_card, write_records
from pytest_sdbench.cards.edit import with_records
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.report.results import Row
from pytest_sdbench.suite.recording import write_records_of
from tests.project import make_card

FID = Record(
    metric="fid",
    value=12.345678,
    n=512,
    protocol="scenes-quick",
    standard_error=0.2149,
    protocol_fingerprint="0123456789012345",
    checkpoint_fingerprint="12e4567890123456",
    device="NVIDIA H100 80GB HBM3",
    versions={"python": "3.11", "torch": "2.15.0+cu130"},
    date="2026-11-22",
)


def score(metric: str = "fid", value: float = 12.5, n: int = 512, **more: Any) -> Record:
    return Record(**{"metric": metric, "value": value, "n": n, "protocol": "scenes-quick", **more})


KID = score("kid", 0.00012345, date="2026-11-22T21:00:00+00:00")

HEAD = """---
# A comment at the head.
license:   "mit"      # spaced, quoted
tags: [ a,b ,  c ]
model-index:
  - name: 'X'
    results:
    -   task: {type: text-to-image}
        dataset: {type: coco, name: COCO, config: coco30k-bksdm}
        metrics:
        - { type: fid, value: 16.980 }   # digits stay
"""
TAIL = """---

# X

records: []   (in the body: no key)
---
"""

# The end of the front matter, before and after.
PLACES = {
    "empty list": ("sdbench:\n  checkpoint: a/b\n  records: []\n", ["  records:"]),
    "empty list, comment": (
        "sdbench:\n  records: []    # ours\n  checkpoint: a/b   # theirs\n",
        ["  records:       # ours"],
    ),
    "null": ("sdbench:\n  records: null\n  checkpoint: a/b\n", ["  records:"]),
    "nothing": ("sdbench:\n  records:\n  checkpoint: a/b\n", []),
    "nothing, at the end": ("sdbench:\n  checkpoint: a/b\n  records:\n", []),
    "nothing, comment": ("sdbench:\n  records:   # ours\n  checkpoint: a/b\n", []),
    "absent": ("sdbench:\n  checkpoint: a/b\n", ["  records:"]),
    "absent, comments below": ("sdbench:\n  checkpoint: a/b   # x\n  # more\n\n# end\n", ["  records:"]),
    "absent, wide indentation": ("sdbench:\n      checkpoint: a/b\n", ["      records:"]),
    "absent, block before": (
        "sdbench:\n  size:\n    unet:\n      exact: 1\n  protocols:\n  - scenes-quick\n",
        ["  records:"],
    ),
    "absent, empty value before": ("sdbench:\n  checkpoint:\n", ["  records:"]),
    "another key behind": ("sdbench:\n  records: []\nlast: 0x10\n", ["  records:"]),
    "quoted key": ('sdbench:\n  "records": []\n', ['  "records":']),
    "in between": ("sdbench: # ours\n\n  # note\n  records: []\n\n  # note\n  base: x\n", ["  records:"]),
}


@pytest.mark.parametrize("empty", ["value:", "value:   # to come", "value: null"])
def test_an_empty_value_is_filled_in(tmp_path: Path, empty: str) -> None:
    path = tmp_path / "card.md"
    path.write_text(HEAD + "sdbench:\n  checkpoint: a/b\n" + TAIL, encoding="utf-8")
    write_records(path, [FID])
    filled = path.read_text(encoding="utf-8")
    path.write_text(filled.replace("value: 12.3457", empty), encoding="utf-8")
    write_records(path, [FID])
    after = path.read_text(encoding="utf-8")
    assert after == filled.replace(
        "value: 12.3457", "value: 12.3457   # to come" if "#" in empty else "value: 12.3457"
    )


@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("place", PLACES)
def test_records_are_added_and_every_other_line_stays(place: str, ending: str, tmp_path: Path) -> None:
    block, opening = PLACES[place]
    path = tmp_path / "card.md"
    before = (HEAD + block + TAIL).replace("\n", ending)
    path.write_bytes(before.encode())
    diff = write_records(path, [FID, KID])
    after = path.read_bytes().decode()
    expected = [
        *opening,
        "- protocol: scenes-quick",
        "  metric: fid",
        "  value: 12.3457",
        "  standard_error: 0.2149",
        "  n: 512",
        '  protocol_fingerprint: "0123456789012345"',
        '  checkpoint_fingerprint: "12e4567890123456"',
        '  device: "NVIDIA H100 80GB HBM3"',
        '  versions: {python: "3.11", torch: "2.15.0+cu130"}',
        '  date: "2026-11-22"',
        "- protocol: scenes-quick",
        "  metric: kid",
        "  value: 0.0001234",
        "  n: 512",
        '  date: "2026-11-22T21:00:00+00:00"',
    ]
    lines = diff.splitlines()
    assert lines[:2] == ["--- a/card.md", "+++ b/card.md"]
    added = [line[1:] for line in lines[2:] if line.startswith("+")]
    removed = [line[1:] for line in lines[2:] if line.startswith("-")]
    assert [line.strip() for line in added] == [line.strip() for line in expected]
    assert added[: len(opening)] == opening
    assert len(removed) <= 1
    assert all("records" in line for line in removed)
    rest = after.split(ending)
    for line in added:
        rest.remove(line)
    kept = before.split(ending)
    for line in removed:
        kept.remove(line)
    assert rest == kept
    assert after.count("\r\n") == (after.count("\n") if ending == "\r\n" else 0)
    block_read = yaml.safe_load(after.replace("\r\n", "\n").split("---\n")[1])["sdbench"]
    assert [entry["value"] for entry in block_read["records"]] == [12.3457, 0.0001234]
    assert block_read["records"][0]["checkpoint_fingerprint"] == "12e4567890123456"
    assert read_card(path).records[0].versions == FID.versions
    assert write_records(path, [FID, KID]) == ""


EXISTING = """sdbench:
  records:   # measured
  # on a quiet machine
  - metric: fid            # ours
    protocol: scenes-quick
    value:   12.0          # was 11
    n: 512
    date: 2026-10-01
  # the next
  - {protocol: scenes-quick, metric: kid, value: 1.0e-4, n: 512}   # flow
  - protocol: scenes-5k
    metric: fid
    value: 9
    n: 5000

  margins: {fid:  0.5}   # two spaces
"""


def after_of(block: str, *records: Record) -> str:
    text = with_records(Path("card.md"), HEAD + block + TAIL, records)
    assert text.startswith(HEAD)
    assert text.endswith(TAIL)
    return text[len(HEAD) : -len(TAIL)]


OTHER_KEYS = """metric: fid            # ours
    protocol: scenes-quick
    value:   12.0          # was 11
    n: 512
    date: 2026-10-01
"""
FLOW = "{protocol: scenes-quick, metric: kid, value: 1.0e-4, n: 512}"
LAST = "    n: 5000\n"


@pytest.mark.parametrize(
    ("new", "changes"),
    [
        pytest.param(
            score(date="2026-11-22"),
            {"value:   12.0": "value:   12.5", "date: 2026-10-01": 'date: "2026-11-22"'},
            id="a new figure takes the place of the old one and leaves its comments",
        ),
        pytest.param(score(value=12.0, date="2026-10-01"), {}, id="the same figure changes nothing"),
        pytest.param(score("kid", 1e-4), {}, id="nor in flow style"),
        pytest.param(
            score(standard_error=0.1),
            {
                OTHER_KEYS: "metric: fid            # ours\n    protocol: scenes-quick\n"
                "    value:   12.5          # was 11\n    n: 512\n    standard_error: 0.1\n"
            },
            id="an entry with other keys keeps its comments",
        ),
        pytest.param(score("kid", 2e-5), {"1.0e-4": "2.0e-05"}, id="a flow entry stays one"),
        pytest.param(
            score("kid", 2e-5, date="2026-11-22"),
            {FLOW: FLOW.replace("1.0e-4, n: 512", '2.0e-05, n: 512, date: "2026-11-22"')},
            id="a flow entry stays one with other keys",
        ),
        pytest.param(
            score("kid", 0.001, 5000, protocol="scenes-5k"),
            {LAST: LAST + "  - protocol: scenes-5k\n    metric: kid\n    value: 0.001\n" + LAST},
            id="a further figure stands behind the last one",
        ),
    ],
)
def test_a_record_changes_its_own_lines_alone(new: Record, changes: dict[str, str]) -> None:
    expected = EXISTING
    for before, after in changes.items():
        assert before in EXISTING
        expected = expected.replace(before, after)
    assert after_of(EXISTING, new) == expected


NEW_ENTRY = "{protocol: scenes-quick, metric: fid, value: 1.5, n: 9}"
OLD_ENTRY = "{protocol: scenes-5k, metric: fid, value: 2, n: 9}"


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("sdbench: {checkpoint: a/b}\n", f"sdbench: {{checkpoint: a/b, records: [{NEW_ENTRY}]}}\n"),
        ("sdbench: {records: [], base: x}\n", f"sdbench: {{records: [{NEW_ENTRY}], base: x}}\n"),
        (
            f"sdbench:\n  records: [{OLD_ENTRY}]  # x\n",
            f"sdbench:\n  records: [{OLD_ENTRY}, {NEW_ENTRY}]  # x\n",
        ),
    ],
)
def test_flow_style_stays_flow_style(block: str, expected: str) -> None:
    assert after_of(block, score(value=1.5, n=9)) == expected


DRAFT = r"card\.md: sdbench: .*`python -m pytest_sdbench draft FOLDER`"
ANCHORED = HEAD.replace("[ a,b ,  c ]", "&x [ ]") + "sdbench:\n  records: *x\n"


@pytest.mark.parametrize(
    ("front", "told"),
    [
        (HEAD, DRAFT),
        (HEAD + "sdbench:\n", "the card's block is empty"),
        (HEAD + "sdbench: {}\n", "the card's block is empty"),
        (ANCHORED, r"sdbench\.records: .*without anchors"),
        # What somebody wrote would be lost.
        (HEAD + "sdbench:\n  records: [   # ours\n  ]\n", r"sdbench\.records: .*comments in braces"),
        (HEAD + "sdbench: {checkpoint: a/b, records: [\n    # ours\n  ]}\n", "comments in braces"),
    ],
)
def test_a_card_that_cannot_be_edited_in_place_takes_no_records(
    front: str, told: str, tmp_path: Path
) -> None:
    path = tmp_path / "card.md"
    path.write_text(front + TAIL)
    with pytest.raises(CardError, match=told):
        write_records(path, [FID])
    assert path.read_text() == front + TAIL


@pytest.fixture
def existing(tmp_path: Path) -> Path:
    """A card with records, alone in its folder."""
    path = tmp_path / "card.md"
    path.write_text(HEAD + EXISTING + TAIL)
    return path


OLD = """  records:
  - metric: fid
    value: 12.0
    n: 512
    protocol: scenes-quick
    versions:
      torch: 2.1.0   # the cluster's build
      numpy: '1.26.0'
"""


def test_of_the_versions_too_only_what_changed_is_written(tmp_path: Path) -> None:
    path = tmp_path / "x.md"
    path.write_text(HEAD + "sdbench:\n" + OLD + TAIL, encoding="utf-8")
    write_records(path, [score(value=12.5, versions={"torch": "2.2.0", "numpy": "1.26.0"})])
    text = path.read_text(encoding="utf-8")
    assert text == HEAD + "sdbench:\n" + OLD.replace("12.0", "12.5").replace("2.1.0", '"2.2.0"') + TAIL


@pytest.mark.parametrize("own", ["metric: kid, value: 0.5", "metric: kid"])
def test_keys_that_were_merged_in_are_written_out(tmp_path: Path, own: str) -> None:
    path = tmp_path / "x.md"
    block = f"""sdbench:
  protocols: [scenes-quick]
  records:
  - &first {{metric: fid, value: 12.0, n: 512, protocol: scenes-quick}}
  - {{<<: *first, {own}}}
"""
    path.write_text(HEAD + block + TAIL, encoding="utf-8")
    write_records(path, [score("kid", 0.25)])
    assert [record.value for record in read_card(path).records] == [12.0, 0.25]
    assert path.read_text(encoding="utf-8").startswith(HEAD + block[: block.index("  - {<<")])


def test_the_file_keeps_its_mode_and_a_link_its_target(existing: Path) -> None:
    link = existing.with_name("link.md")
    existing.chmod(0o640)
    link.symlink_to(existing)
    assert write_records(link, [FID])
    assert link.is_symlink()
    assert stat.S_IMODE(existing.stat().st_mode) == 0o640
    assert "12.3457" in existing.read_text()
    assert sorted(item.name for item in existing.parent.iterdir()) == ["card.md", "link.md"]


def test_a_full_disk_leaves_the_card_as_it_was(existing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CardError, match=r"No space left on device.*Free some space") as caught:
        write_records(existing, [FID])
    assert caught.value.file == existing
    assert existing.read_text() == HEAD + EXISTING + TAIL
    assert [item.name for item in existing.parent.iterdir()] == ["card.md"]


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Co", "Cn"]), min_size=1)


@example(value=0.0, error=None, device="a", version="---", place=EXISTING, ending="\n")
@given(
    value=st.floats(-1e3, 1e9),
    error=st.none() | st.floats(0, 1e6),
    device=TEXT,
    version=TEXT,
    place=st.sampled_from(["sdbench:\n  records: []\n", EXISTING, "sdbench: {records: []}\n"]),
    ending=st.sampled_from(["\n", "\r\n"]),
)
def test_whatever_is_recorded_reads_back_the_same_to_both_yaml_versions(
    value: float, error: float | None, device: str, version: str, place: str, ending: str
) -> None:
    more: dict[str, Any] = {"device": device, "versions": {"torch": version}}
    record = score("kid", value, 3, protocol="scenes-30k", standard_error=error, **more)
    before = (HEAD + place + TAIL).replace("\n", ending)
    after = with_records(Path("card.md"), before, [record])
    front = module.parse(Path("card.md"), after)
    written = yaml.safe_load(after[front.start : front.end])["sdbench"]["records"]
    assert written[-1] == record.to_dict()
    assert with_records(Path("card.md"), after, [record]) == after


@pytest.mark.parametrize(
    ("metric", "value", "told"),
    [
        ("clip_score", -0.0123, "the CLIP score is negative"),
        ("fid", 3e-9, "the FID is zero.*Zero is no reference"),
        ("inception_score", 0.5, "wrong scale"),
        ("fid", float("nan"), r"card\.md: sdbench\.records: .*not finite"),
        ("fid", float("inf"), r"card\.md: sdbench\.records: .*not finite"),
    ],
)
def test_what_could_not_be_read_back_is_not_recorded(
    existing: Path, metric: str, value: float, told: str
) -> None:
    with pytest.raises(CardError, match=told) as caught:
        write_records(existing, [score("kid", 0.5), score(metric, value)])
    assert caught.value.file == existing
    assert existing.read_text() == HEAD + EXISTING + TAIL


def test_a_kid_of_nothing_is_one_and_an_error_of_nothing_is_none(existing: Path) -> None:
    write_records(existing, [score("kid", 3e-9, standard_error=1e-12)])
    (found,) = [record for record in read_card(existing).records if record.metric == "kid"]
    assert (found.value, found.standard_error) == (0.0, None)


def test_a_record_is_found_however_its_metric_is_spelt(existing: Path) -> None:
    write_records(existing, [KID])
    existing.write_text(
        existing.read_text(encoding="utf-8").replace("metric: kid", "metric: KID"), encoding="utf-8"
    )
    write_records(existing, [replace(KID, value=0.0002)])
    (found,) = [record for record in read_card(existing).records if record.metric == "kid"]
    assert found.value == 0.0002


def test_a_figure_that_cannot_be_a_reference_keeps_no_other_from_being_one(tmp_path: Path) -> None:
    """Random weights may well have a CLIP score below zero."""
    own = "embedded:scenes-sd"
    card = make_card(tmp_path / "mini.md", claims={}, protocol="scenes-quick", checkpoint=own)
    about = {"complete": True, "checkpoint_fingerprint": resolve(own).fingerprint}
    rows = [
        Row(
            node_id=f"mini.md::{metric}",
            card="mini",
            test="quality",
            metric=metric,
            protocol="scenes-quick",
            measured=value,
            standard_error=0.1,
            n=150,
            extra=about,
        )
        for metric, value in (("clip_score", -0.2361), ("fid", 12.5))
    ]
    diffs, refused, failed = write_records_of(rows, finished=True, files={row.node_id: card for row in rows})
    assert len(diffs) == 1
    assert [record.metric for record in read_card(card).records] == ["fid"]
    (line,), () = refused, failed
    assert "CLIP score is negative" in line
    assert "-0.2361" in line
