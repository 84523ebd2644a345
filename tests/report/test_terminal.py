"""The terminal shows what came of a run at a glance, within its width, and all of it with -v."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from pytest_sdbench.base.text import clipped, columns, shortened
from pytest_sdbench.report.cells import plain_table
from pytest_sdbench.report.results import Row
from pytest_sdbench.report.terminal import terminal_tables
from tests.report.test_report import FORGED, HIDDEN, ROWS, row

FID = ROWS[5]
MAX_IMAGES = (
    "scenes-5k: 4,488 of 5,000 images are not in the store (25 steps each), and this run makes at most 1,000 "
    "of a checkpoint and protocol. To make them: --sdbench-max-images all"
)
CACHE = (
    "org/{0}: not in the hub cache. Fetch it: --sdbench-download, or give a copy: --sdbench-weights {0}=PATH"
)


def published(card: str, metric: str, value: str, record: str, **values: object) -> list[Row]:
    """Return a published figure and its record, of one measurement."""
    both = {"card": card, "metric": metric, "protocol": "scenes-quick", "measured": float(record), "n": 512}
    return [
        row(
            "quality",
            **both | {"node_id": f"{card}{name}", "name": name, "kind": kind},
            claimed_text=text,
            claimed=float(text),
            **values,
        )
        for name, kind, text in (
            (f"scenes-quick-{metric}", "published", value),
            (f"scenes-quick-{metric}-recorded", "recorded", record),
        )
    ]


def family(cards: int = 18) -> list[Row]:
    """Return the rows of a whole run: of each card sizes, scores that passed, and scores not made."""
    rows: list[Row] = []
    for at in range(cards):
        card = f"stable-diffusion-{at}"
        rows += [
            row("size", card=card, name="unet", measured=859_520_964.0),
            row("compute", card=card, measured=4e11),
        ]
        rows += published(card, "fid", "1.02", "1.0171") + published(card, "kid", "0.0026", "0.0025526")
        lacks = [
            MAX_IMAGES,
            CACHE.format(card),
            f"x{at}: no data root is given. Give --sdbench-data a folder",
        ]
        lacks += [f"thing {at} is odd" for at in range(12)]
        rows += [
            row(
                "quality",
                card=card,
                name=f"scenes-{i}{end}",
                verdict="unavailable",
                reason=reason,
                node_id=f"{card}{i}{end}",
            )
            for i, reason in enumerate(lacks)
            for end in ("", "-recorded")
        ]
    return rows


@pytest.mark.parametrize("width", [20, 60, 80, 100, 120, 200])
def test_nothing_is_wider_than_the_terminal_and_a_whole_run_fits_a_page(width: int) -> None:
    broken = [
        replace(each, verdict=verdict)
        for each in published("x" * 60, "fid", "9.5", "9.5001")
        for verdict in ("fail", "error")
    ]
    notes = [
        replace(ROWS[0], extra={"notes": [f"{at} prompts were cut to a length" * 9 for at in range(30)]})
    ]
    text = terminal_tables([*family(), *broken, *notes], width=width)
    assert max(map(columns, text.splitlines())) <= max(width, 60)
    assert len(text.splitlines()) <= 50


@pytest.mark.parametrize(
    ("rows", "headline"),
    [
        (
            ROWS,
            "Do not release: 2 of 7 claims fell, and 1 cannot be judged: "
            "bk-sdm-small (whole), tiny-sd (unstated…",
        ),
        (ROWS[2:4], "Cannot tell: no score was compared; 2 claims hold of the networks"),
        ([FID], "Release: the one claim holds"),
        (ROWS[4:5], "Cannot tell: nothing was measured"),
        (
            [replace(FID, verdict="inconclusive")],
            "Cannot tell: 1 of 1 claim is too close to call: bk-sdm-small (coco30k-bksdm-fid)",
        ),
        (
            [replace(each, verdict="fail") for each in published("m", "fid", "1.02", "1.0171")],
            "Do not release: 1 of 1 claim fell: m (scenes-quick-fid)",
        ),
    ],
    ids=["fell", "networks", "passed", "nothing", "open", "shared"],
)
def test_the_first_line_says_what_came_of_it(rows: list[Row], headline: str) -> None:
    first, second = terminal_tables(rows).splitlines()[:2]
    assert first == headline
    assert re.match(r"\d+ cards?: \d+ ", second)


def test_a_run_that_was_interrupted_releases_nothing() -> None:
    assert terminal_tables([FID], status=2).startswith("Cannot tell: the claims hold, but pytest ended with")
    assert terminal_tables([replace(FID, verdict="fail")], status=1).startswith("Do not release")


def test_a_card_that_passed_has_one_row_and_each_claim_that_did_not_has_one() -> None:
    lines = terminal_tables(ROWS, width=120).splitlines()
    assert [line.split()[:2] for line in lines if re.match(r"(pass|fail|error)\s", line)] == [
        ["fail", "bk-sdm-small"],
        ["fail", "tiny-sd"],
        ["fail", "bk-sdm-small"],
        ["fail", "tiny-sd"],
    ]
    (size,) = [line for line in lines if "size whole" in line]
    assert "654,897,543" in size
    assert "654,897,544" in size
    (score,) = [line for line in lines if "unstated-30k-fid" in line and "17.7266" in line]
    assert "19.5000" in score
    assert "0.712 (max 0.76)" in "\n".join(lines)
    assert "FID 17.01; 1 not measured" in "\n".join(lines)
    assert "cannot be read: broken" in lines


def test_verbose_shows_every_claim_and_reason_and_exact_counts() -> None:
    text = terminal_tables(ROWS, verbose=True)
    for words in ("482,346,884", "255.4 G", "0.712 (max 0.76)", "fail (size), else pass", "17.01 ± 0.10"):
        assert words in text
    assert "not measured: 2 checks of 1 card (2 unavailable)" in text
    assert "no CLIP weights" in text
    assert "needs CUDA" in text


def test_a_score_that_is_predicted_from_fewer_images_says_so() -> None:
    early = replace(FID, n=2000, extra={"requested": 30_000, "predicted_for": 30_000})
    (line,) = [line for line in terminal_tables([early], verbose=True).splitlines() if "17.01" in line]
    assert "17.01 ± 0.10, predicted" in line
    assert "2,000 of 30,000" in line
    assert "predicted" not in terminal_tables(ROWS, verbose=True)


@pytest.mark.parametrize(
    ("value", "record", "verdicts", "shared"),
    [
        ("1.02", "1.0171", ("pass", "pass"), True),
        ("1.02", "1.0271", ("pass", "pass"), False),
        ("1.02", "1.0171", ("pass", "fail"), False),
        ("0.0026", "0.0025526", ("fail", "fail"), True),
        ("1e1", "10.2", ("pass", "pass"), True),
    ],
)
def test_a_published_figure_and_a_record_that_agree_share_a_row(
    value: str, record: str, verdicts: tuple[str, str], shared: bool
) -> None:
    rows = [
        replace(each, verdict=end)
        for each, end in zip(published("m", "fid", value, record), verdicts, strict=True)
    ]
    lines = [
        line
        for line in terminal_tables(rows, verbose=True).splitlines()
        if "scenes-quick-fid" in line and line[0] in "pf"
    ]
    assert len(lines) == 2 - shared
    if shared:
        assert lines[0].split()[3:5] == [value, record]


def test_what_was_not_measured_is_grouped_by_what_would_help() -> None:
    lines = terminal_tables(family(), width=200).splitlines()
    at = lines.index(next(line for line in lines if line.startswith("not measured: 270 scores of 18 cards")))
    groups = lines[at + 1 :]
    groups = groups[: groups.index("")] if "" in groups else groups
    assert len(groups) + 1 <= 10
    assert max(map(columns, groups)) <= 100
    assert groups[0].split("  ")[0] == "- 18 scores of 18 cards"
    said = " ".join(groups)
    for words in (
        "--sdbench-max-images all",
        "4,488 of 5,000 images are not in the store",
        "--sdbench-download",
        "Give --sdbench-data a folder",
        "-v",
    ):
        assert words in said


def test_a_remedy_that_a_row_names_goes_before_one_that_its_reason_may_hold() -> None:
    known = row(
        "memory",
        verdict="unavailable",
        reason="x: no GPU. One lies here",
        extra={"remedy": "Run with --sdbench-device cuda"},
    )
    assert "Run with --sdbench-device cuda  no GPU: x" in terminal_tables([known])


def test_verdicts_and_the_headline_are_painted_and_columns_stay() -> None:
    def paint(text: str, verdict: str) -> str:
        return f"\x1b[31m{text}\x1b[0m" if verdict == "fail" else text

    painted, bare = (
        terminal_tables(ROWS, paint=each, width=90) if each else terminal_tables(ROWS, width=90)
        for each in (paint, None)
    )
    assert re.sub(r"\x1b\[\d*m", "", painted) == bare
    assert painted.startswith("\x1b[31mDo not release")
    assert painted.count("\x1b[31mfail\x1b[0m") == 4
    words = dict.fromkeys(("card", "name", "verdict"), HIDDEN + FORGED)
    assert "\x1b" not in terminal_tables([replace(FID, **words)], paint=lambda text, _: text)


@pytest.mark.parametrize("verbose", [False, True], ids=["short", "verbose"])
@pytest.mark.parametrize("verdict", ["pass", "fail", "inconclusive", "unavailable"])
@pytest.mark.parametrize(
    "text", [FORGED, HIDDEN, "\u202e|<b>\n- x", "\x1b]0;title\x07", "\u200f\u2067\r\x9b1A"], ids=ascii
)
def test_words_of_others_move_and_forge_nothing(text: str, verdict: str, verbose: bool) -> None:
    fields = ("card", "name", "metric", "protocol", "reason", "claimed_text", "unit")
    lost = [{"index": 1, "value": 0.5, "reference": 0.6, "prompt": text}]
    said = {"notes": [text], "changes": [text], "remedy": text, "worst": lost}
    rows = [
        replace(FID, **dict.fromkeys(fields, text), verdict=verdict, measured=measured, extra=said, test=test)
        for measured in (1.0, None)
        for test in ("quality", "size", "speed")
    ]
    shown = terminal_tables(rows, verbose=verbose, width=80)
    assert all(char.isprintable() or char in "\n\u200c\u200d" for char in shown)
    # No line begins as one of ours does, and is another's.
    assert not [line for line in shown.splitlines() if line.startswith(("# Passed", "- x"))]


@pytest.mark.parametrize(
    ("text", "width"),
    [("abc", 3), ("大きい", 6), ("é", 1), ("e\u0301", 1), ("👩\u200d🚀", 4), ("Größe", 5), ("", 0)],
    ids=ascii,
)
def test_wide_characters_take_two_columns_and_marks_none(text: str, width: int) -> None:
    assert columns(text) == width
    table = plain_table(["name", "n"], [[text, "1"], ["abcdef", "2"]], "lr").splitlines()
    assert {columns(line) for line in table} == {columns(table[-1])}
    assert columns(clipped(text, 2)) <= 2 or width <= 2
    assert clipped(text, width) == text


@pytest.mark.parametrize("most", [12, 13, 40])
def test_a_long_name_keeps_both_ends_and_stays_apart_from_its_namesakes(most: int) -> None:
    names = [f"my-model-distilled-on-two-million-pairs-step-{step}" for step in (10_000, 20_000)]
    short = [shortened(name, most) for name in names]
    assert short[0] != short[1]
    assert all(columns(each) == most and "…" in each for each in short)
    assert all(name.startswith(each.partition("…")[0]) for name, each in zip(names, short, strict=True))
    assert all(name.endswith(each.partition("…")[2]) for name, each in zip(names, short, strict=True))
    assert shortened("大きい" * 9, most) != "大きい" * 9
    assert columns(shortened("大きい" * 9, most)) <= most
    assert shortened("short", most) == "short"


def test_a_heading_may_have_two_lines() -> None:
    assert plain_table(["a", "b\nc"], [["1", "22"]], "lr").splitlines() == [
        "    b",
        "a   c",
        "-  --",
        "1  22",
    ]
