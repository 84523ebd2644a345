"""The page of a run says what fell, shows it, sends nothing, and takes the words of others for words."""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.family import reports
from pytest_sdbench.base.paths import reference
from pytest_sdbench.base.text import plain
from pytest_sdbench.cards.card import Card, read_card
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.report.history import run_of
from pytest_sdbench.report.html import render
from pytest_sdbench.report.html.axes import axis_of
from pytest_sdbench.report.html.claims import claim_lines, share_rows
from pytest_sdbench.report.html.cost import cost_panels
from pytest_sdbench.report.html.forest import CLAIM, EDGE, forest
from pytest_sdbench.report.html.headline import gaps, headline
from pytest_sdbench.report.html.page import page_of
from pytest_sdbench.report.html.pictures import pair_groups
from pytest_sdbench.report.html.render import results_html
from pytest_sdbench.report.html.run import Run
from pytest_sdbench.report.results import Row
from pytest_sdbench.report.write import cards_beside, write_reports
from tests.fonts import installed
from tests.report.pages import BASELINE, CANDIDATE, Tags, images_of, keep, read, row, score
from tests.report.test_report import FORGED, HIDDEN, ROWS


@pytest.fixture(scope="module")
def card() -> Card:
    return read_card(reference() / "cards" / "scenes-tiny-lcm.md")


def rows_of(text: str) -> list[Row]:
    """Return rows of some verdicts: `pass fail size:pass`."""
    words = [word.rpartition(":") for word in text.split()]
    return [
        row(
            test or "quality",
            name=str(at),
            verdict=verdict,
            measured=None if verdict == "unavailable" else 1.0,
        )
        for at, (test, _, verdict) in enumerate(words)
    ]


@pytest.mark.parametrize(
    ("verdicts", "sentence"),
    [
        ("pass pass size:pass", "Release: all 3 claims hold"),
        ("pass", "Release: the one claim holds"),
        ("pass pass mismatch", "Release: all 2 claims hold; 1 was not compared"),
        ("pass fail fail mismatch unavailable", "Do not release: 2 of 3 claims fell"),
        ("pass fail error", "Do not release: 1 of 3 claims fell, and 1 cannot be judged"),
        ("pass card:error", "Do not release: 1 of 2 claims cannot be judged"),
        ("pass inconclusive", "Cannot tell: 1 of 2 claims is too close to call"),
        ("inconclusive inconclusive", "Cannot tell: 2 of 2 claims are too close to call"),
        ("pass pass unavailable", "Cannot tell: 2 claims hold, and 1 was not measured"),
        ("size:pass unavailable", "Cannot tell: no score was measured; 1 claim holds of the networks"),
        ("size:pass mismatch", "Cannot tell: no score was compared; 1 claim holds of the networks"),
        ("size:pass compute:pass", "Cannot tell: no score was compared; 2 claims hold of the networks"),
        ("unavailable", "Cannot tell: nothing was measured"),
        ("mismatch", "Cannot tell: nothing that was measured can be compared with a claim"),
        ("", "Cannot tell: nothing was measured"),
        # Memory is read on CUDA alone, and is no score.
        ("pass memory:unavailable", "Release: the one claim holds"),
        ("pass speed:unavailable", "Cannot tell: 1 claim holds, and 1 was not measured"),
    ],
)
def test_one_sentence_says_whether_to_release(verdicts: str, sentence: str) -> None:
    found = headline(rows_of(verdicts))
    assert found.sentence == sentence
    states = {"Release": "pass", "Do not release": "fail", "Cannot tell": "inconclusive"}
    assert found.state == states[sentence.partition(":")[0]]


def test_no_page_releases_what_a_run_was_not_asked_for(card: Card) -> None:
    rows = [row(name=each.id, verdict="pass", measured=1.0) for each in card.claims[:-1]]
    page = page_of([card], rows)
    assert page.headline.state == "inconclusive"
    assert page.headline.sentence.endswith(" claims hold, and 1 claimed score is no part of this run")
    page = page_of([card], [*rows, replace(rows[0], name=card.claims[-1].id)])
    assert page.headline.sentence.startswith("Release: all ")


def test_no_page_releases_what_a_run_did_not_end_well_with(tmp_path: Path) -> None:
    rows = rows_of("pass pass size:pass")
    assert "<h1" in (released := results_html([], rows, Run(status=0)))
    assert "Release: all 3 claims hold" in released
    broken = results_html([], rows, Run(status=2))
    assert "Release:" not in broken
    assert "Cannot tell: the claims hold, but pytest ended with status 2 (the run was interrupted)" in broken


@pytest.mark.parametrize("half", [0, 0.2])
@pytest.mark.parametrize("worse", [-3, -0.5, 0, 0.5, 0.95, 1.05, 1.5, 9])
def test_the_bar_lies_where_the_verdict_says(worse: float, half: float) -> None:
    made = score("ssim", 0.02 * worse, margin=0.02, half=0.02 * half)
    line = forest(made)
    assert line is not None
    assert line.low <= line.point <= line.high
    assert {"pass": line.high <= EDGE, "fail": line.low > EDGE}.get(
        made.verdict, line.low <= EDGE < line.high
    )
    assert (line.point > CLAIM) == (worse > 0)
    assert line.beyond == ("worse" if worse > 2.5 else "better" if worse < -1.5 else "")


def test_what_has_no_margin_or_no_figure_has_no_bar() -> None:
    assert forest(score("ssim", 0.1, margin=0.0)) is None
    assert forest(replace(score("ssim", 0.1), measured=None, extra={})) is None
    # Without bounds there is a point.
    line = forest(replace(score("ssim", 0.5), extra={}))
    assert line is not None
    assert line.low == line.point == line.high


def test_what_fell_is_first_and_of_that_what_missed_its_margin_most() -> None:
    rows = [
        score("psnr", 0.0),
        score("ssim", 3.0),
        score("lpips", 1.0, half=0.5),
        score("feature_cosine", 20.0),
        row("size", name="unet", verdict="fail", claimed=1.0, measured=2.0),
        row(verdict="error", name="x", reason="broken"),
        row(verdict="unavailable", name="y", reason="not here"),
    ]
    lines = claim_lines(rows, {}, {})
    assert [(line.verdict, line.metric) for line in lines] == [
        ("fail", "Feature cosine"),
        ("fail", "SSIM"),
        ("fail", "size"),
        ("error", "quality"),
        ("inconclusive", "LPIPS"),
        ("pass", "PSNR"),
    ]
    assert lines[1].difference == "3.0000 worse"
    assert lines[1].bound == "at least 2.9000 worse, margin 1"


def test_a_record_shares_the_line_of_the_published_figure_that_it_agrees_with() -> None:
    published = score("ssim", 0.0, kind="published", claimed=0.93, claimed_text="0.93", name="p")
    recorded = replace(published, kind="recorded", claimed=0.9342, claimed_text="0.9342", node_id="r")
    for twin, shared in (
        (recorded, True),
        (replace(recorded, claimed=0.95), False),
        (replace(recorded, verdict="fail"), False),
        (replace(recorded, metric="psnr"), False),
        (replace(recorded, card="another"), False),
    ):
        rows, twins = share_rows([published, twin])
        assert len(rows) == (1 if shared else 2)
        assert list(twins.values()) == ([twin] if shared else [])
    (line,) = claim_lines(*share_rows([published, recorded]), {})
    assert line.node_ids == (published.node_id, "r")


def test_what_was_not_measured_is_grouped_by_its_remedy() -> None:
    def lacks(card: str) -> Row:
        remedy = f"Fetch it, or give a copy: --sdbench-weights {card}=PATH"
        reason = f"org/{card}: not in the cache. {remedy}"
        return row(card=card, name="a", verdict="unavailable", reason=reason, extra={"remedy": remedy})

    first, second = gaps([lacks("one"), row(name="b", verdict="mismatch", reason="else"), lacks("two")])
    assert (first.number, first.remedy) == (2, "Fetch it, or give a copy: --sdbench-weights CARD=PATH")
    assert first.reason == "org/one: not in the cache (and 1 more of the kind)"
    assert first.checks == ("one: a", "two: a")
    assert (second.verdict, second.remedy, second.reason) == ("mismatch", "", "else")


def test_what_a_card_claims_and_a_run_was_not_asked_for_is_told(card: Card) -> None:
    asked = [row(name=each.id) for each in card.claims if each.protocol == "scenes-lcm4-quick"]
    page = page_of([card], asked)
    left = {each.metric: None for each in card.claims if each.protocol == "scenes-lcm4-5k"}
    assert page.unasked == len(left) > 3
    (fact,) = (fact for fact in page.facts if fact.name.startswith("Claimed"))
    assert fact.values == (f"scenes-lcm4-5k: {', '.join(METRICS[metric].label for metric in left)}",)
    assert page_of([card], [row(name=each.id) for each in card.claims]).unasked == 0


def hostile(words: str, store: Path) -> tuple[list[Card], list[Row], Run, list[Card]]:
    """Return a run in which everything that is not ours says these words, and a card beside it that does.

    Their prompts do so, too, in a store of its own.
    """
    family = [read_card(reference() / "cards" / f"scenes-{name}.md") for name in ("tiny-lcm", "sd")]
    named = [replace(each, name=words * times, title=words) for times, each in enumerate(family, 1)]
    label = replace(named[0].claims[0], label=words)
    card = replace(named[0], explained=(words,), claims=(label, *named[0].claims[1:]))
    known = score("ssim", 3.0)
    extra = dict(known.extra) | {
        "changes": [words],
        "notes": [words],
        "reference": words,
        "device": words,
        "versions": {words: words},
        "date": words,
        "worst": [{**each, "prompt": words} for each in images_of([3, 1])],
    }
    for checkpoint in (CANDIDATE, BASELINE):
        keep(store, checkpoint, range(2 if checkpoint == BASELINE else 4), prompt=words)
    told = {"card": words, "node_id": words, "name": words, "claimed_text": words, "reason": words}
    rows = [
        replace(known, **told, extra=extra),
        replace(known, **told | {"metric": words, "kind": words}),
        replace(known, **told | {"protocol": words, "verdict": "error", "measured": None}),
        replace(known, **told | {"name": label.id, "claimed": None, "metric": label.metric}),
        replace(known, **told, protocol="scenes-quick", metric="clip_score", measured=0.9),
        row("size", card=words, name=words, measured=1.0, claimed=1.0),
        row(words, card=words, name=words, verdict="error", reason=words),
        row(card=words, name=words, verdict="unavailable", reason=words, extra={"remedy": words}),
        row(card="another", name=words, verdict="mismatch", reason=words),
    ]
    latest = run_of(rows, {"commit": words})
    assert latest is not None
    moved = tuple(replace(each, value=0.5, verdict=words) for each in latest.measurements)
    past = replace(latest, id="0", date="2026-10-01T10:00:00Z", measurements=moved)
    return [card], rows, Run(words, (store,), {words: words}, (past, latest)), named[1:]


@pytest.mark.parametrize(
    "words",
    [
        *(
            FORGED,
            HIDDEN,
            "<script>alert(1)</script>",
            '" onload="alert(1)',
            "' x='",
            "</style><b>",
            "{{ 7 * 7 }}",
        ),
        *(
            "javascript:alert(1)",
            "&lt;b&gt;",
            "]]><svg onload=alert(1)>",
            "</script><img src=//evil.example>",
        ),
    ],
)
def test_the_words_of_others_are_words(words: str, tmp_path: Path) -> None:
    ours, theirs = (page_of_words(each, tmp_path / str(at)) for at, each in enumerate(("harmless", words)))
    # Pictures and all plots are among it.
    assert {"img", "circle", "polyline", "g"} <= set(ours.tags)
    assert theirs.tags == ours.tags
    assert [sorted(attributes) for _, attributes in theirs.elements] == [
        sorted(attributes) for _, attributes in ours.elements
    ]
    assert list(theirs.values("class", "id", "href", "src")) == list(
        ours.values("class", "id", "href", "src")
    )
    shown = plain(" ".join(words.split()))
    assert theirs.text.count(shown) >= 40
    assert all(each.isprintable() or each == "\n" for each in theirs.text)
    assert all(value.isprintable() for value in theirs.values("aria-label", "value", "data-card", "alt"))


@pytest.mark.parametrize("example", reports.EXAMPLES, ids=lambda each: each.name)
def test_an_example_says_what_it_is_of_and_is_small(example: reports.Example) -> None:
    page = (reports.PAGES / f"{example.name}.html").read_text(encoding="utf-8")
    assert f"<title>{example.sentence}" in page
    assert len(page.encode()) <= reports.MOST
    # It is of whatever machine made it, and says nothing of its folders.
    assert not re.search(r"(?<![\w.~-])/(home|root|tmp|work)/", read(page).text)


def page_of_words(words: str, store: Path) -> Tags:
    """Return the page of a run that says these words."""
    cards, rows, run, beside = hostile(words, store)
    return read(results_html(cards, rows, run, beside=beside))


def test_the_page_asks_for_nothing_and_may_not(card: Card, tmp_path: Path) -> None:
    page = results_html([card], shown_rows(tmp_path), Run("python -m pytest --sdbench", (tmp_path,)))
    tags = read(page)
    places = [*tags.values("src", "href", "srcset", "action", "poster", "data", "xlink:href")]
    assert places
    assert all(place.startswith(("data:", "#")) for place in places)
    assert not re.search(r"url\(|@import|https?://", page)
    (policy,) = (attrs["content"] for tag, attrs in tags.elements if "http-equiv" in attrs)
    script = page.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert f"'sha256-{digest}'" in policy
    assert "python -m pytest --sdbench" in tags.text
    headings = [int(tag[1]) for tag in tags.tags if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == 1 == headings.count(1)
    assert all(after <= before + 1 for before, after in itertools.pairwise(headings))


def shown_rows(store: Path, *, side: int = 64, n: int = 128) -> list[Row]:
    """Return rows of a candidate whose pictures are kept, as its baseline's are."""
    for checkpoint in (CANDIDATE, BASELINE):
        for start in range(0, n, 64):
            keep(store, checkpoint, range(start, min(start + 64, n)), side)
    extra = {"first": images_of([*range(12)])}
    return [
        score("ssim", 3.0, extra=extra | {"worst": images_of([70, 5, 71])}),
        score("psnr", 9.0, extra=extra | {"worst": images_of([90, 70, 100])}),
        score("lost", 0.0, extra={"worst": images_of([71])}),
    ]


def test_the_worst_pairs_come_first_and_a_dozen_always(card: Card, tmp_path: Path) -> None:
    (group,) = pair_groups(shown_rows(tmp_path), [card], Run(stores=(tmp_path,)))
    worst = [(pair.index, pair.why) for pair in group.pairs if pair.why]
    # Of the scores in turn, what missed its margin most first.
    assert worst == [
        (90, "worst of PSNR"),
        (70, "worst of SSIM"),
        (71, "worst of Lost"),
        (5, "worst of SSIM"),
        (100, "worst of PSNR"),
    ]
    assert [pair.index for pair in group.pairs if not pair.why] == [at for at in range(12) if at != 5]
    first = group.pairs[0]
    assert [picture.role for picture in first.pictures] == ["real", "baseline", "candidate"]
    assert (first.prompt, first.seed) == ("prompt 90", 1090)
    assert (group.baseline, group.notes) == ("the reference", ())
    values = {value.label: (value.value, value.beside) for value in group.pairs[3].values}
    assert values == {"PSNR": ("0.50", "equal pictures 1.00"), "SSIM": ("0.5000", "equal pictures 1.0000")}


def test_without_the_font_a_page_says_that_the_real_scenes_are_missing(card: Card, tmp_path: Path) -> None:
    with installed(None):
        (group,) = pair_groups(shown_rows(tmp_path), [card], Run(stores=(tmp_path,)))
    assert {picture.role for pair in group.pairs for picture in pair.pictures} == {"baseline", "candidate"}
    (note,) = group.notes
    assert note.startswith(
        "real scenes are not shown: scenes cannot be drawn here: matplotlib is not installed"
    )


def test_pictures_are_no_larger_than_said_and_the_file_no_larger_than_its_cap(
    card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = shown_rows(tmp_path, side=300)
    (group,) = pair_groups(rows, [card], Run(stores=(tmp_path,)))
    assert {(each.width, each.height) for pair in group.pairs for each in pair.pictures} == {(256, 256)}
    (fewer,) = pair_groups(rows, [card], Run(stores=(tmp_path,)), 400_000)
    assert sum(len(each.uri) for pair in fewer.pairs for each in pair.pictures) <= 400_000
    left = len(group.pairs) - len(fewer.pairs)
    assert 0 < left < len(group.pairs)
    assert fewer.pairs[0] == group.pairs[0]
    assert fewer.notes == (f"{left} pairs are left out, so that this file stays under 8 MB",)
    # What is long takes the place of pictures, and the pair at the top is in the page twice.
    monkeypatch.setattr(render, "LARGEST", 900_000)
    rows.append(row("quality", card.name, "unavailable", reason="long " * 80_000))
    page = results_html([card], rows, Run(stores=(tmp_path,)))
    assert 700_000 < len(page.encode()) <= 900_000
    assert "pairs are left out" in page


def test_a_baseline_that_keeps_some_pictures_is_shown_beside_these(card: Card, tmp_path: Path) -> None:
    for start in (0, 64):
        keep(tmp_path, CANDIDATE, range(start, start + 64))
    keep(tmp_path, BASELINE, range(64))
    rows = [score("ssim", 3.0, extra={"worst": images_of([70, 3])})]
    (group,) = pair_groups(rows, [card], Run(stores=(tmp_path,)))
    compared = {pair.index: pair.compares for pair in group.pairs}
    assert compared.pop(70) is False
    assert set(compared.values()) == {True}


def test_pictures_that_are_not_kept_are_told_of(card: Card, tmp_path: Path) -> None:
    keep(tmp_path, CANDIDATE, range(64))
    rows = [score("ssim", 3.0, extra={"worst": images_of([3, 70])})]
    (group,) = pair_groups(rows, [card], Run(stores=(tmp_path,)))
    assert [pair.index for pair in group.pairs] == [3, *(at for at in range(12) if at != 3)]
    assert not any(pair.compares for pair in group.pairs)
    absent, alone = group.notes
    assert absent.startswith(
        "1 pair is not shown, whose pictures the store does not keep: --sdbench-keep-images"
    )
    assert alone.startswith("no baseline")
    (file,) = tmp_path.rglob("pictures-*.tar")
    file.write_bytes(file.read_bytes()[:-600])
    with pytest.warns(UserWarning, match="damaged"):
        (group,) = pair_groups(rows, [card], Run(stores=(tmp_path,)))
    assert not group.pairs
    assert group.notes[0].startswith("13 pairs are not shown")
    # Where nothing is kept at all there is nothing to be seen or said.
    assert pair_groups(rows, [card], Run()) == ()


def test_the_frontier_is_what_no_other_card_beats_in_both(tmp_path: Path) -> None:
    cards = [read_card(path) for path in sorted((reference() / "cards").glob("bk-sdm-*.md"))]
    own, beside = cards[:1], cards[1:]
    rows = [
        row(
            card=own[0].name,
            metric="fid",
            protocol="coco30k-bksdm",
            measured=20.0,
            claimed=15.0,
            verdict="fail",
        )
    ]
    panels = cost_panels(rows, own, beside)
    assert [panel.cost for panel in panels] == [
        "million parameters of the U-Net",
        "billion MACs of a U-Net call",
    ]
    for panel in panels:
        last = {point.card: point for point in panel.points}
        assert last[own[0].name].measured
        assert len(panel.points) == len(cards) + 1
        # Height grows downwards, where less FID is.
        unbeaten = {
            (one.x, one.y)
            for one in last.values()
            if not any(
                other.x <= one.x and other.y >= one.y and (other.x, other.y) != (one.x, one.y)
                for other in last.values()
            )
        }
        corners = {tuple(map(float, corner.split(","))) for corner in panel.frontier.split()}
        assert unbeaten <= corners


def test_what_is_of_many_cards_is_told_in_few_lines(card: Card) -> None:
    cards = [replace(card, name=f"card-{at}") for at in range(100)]
    facts = page_of(cards, [row("size", card=each.name) for each in cards]).facts
    (fact,) = [each for each in facts if each.name == "Claimed, and not part of this run"]
    assert len(fact.values) == 13
    assert re.fullmatch(r"and [1-9]\d+ more", fact.values[-1])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_has_no_place_among_quality_and_cost(card: Card, value: float) -> None:
    cards = [replace(card, name=name) for name in ("one", "two", "three")]
    scores = {"one": 1.0, "two": 2.0, "three": value}
    rows = [score("fid", 3.0, card=name, protocol="p", measured=each) for name, each in scores.items()]
    page = page_of(cards, rows)
    assert {point.card for panel in page.panels for point in panel.points} == {"one", "two"}


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [-1e-9, 3e-9], [3.0, 3.01], [2.5e11, 9e11], [-50, 50]])
def test_an_axis_holds_its_values_and_has_round_ticks(values: list[float]) -> None:
    axis = axis_of(values, 100.0, 300.0)
    assert all(100 <= axis.at(value) <= 300 for value in values)
    assert 2 <= len(axis.ticks) <= 7
    assert len({text for _, text in axis.ticks}) == len(axis.ticks)


def test_a_page_is_written_for_any_rows_beside_cards_of_the_same_protocol(tmp_path: Path, card: Card) -> None:
    beside = cards_beside([card], [row(protocol="scenes-quick")])
    assert {"scenes-sd", "scenes-tiny"} <= {each.name for each in beside}
    assert "bk-sdm-small" not in {each.name for each in beside}
    for number, rows in enumerate([[], ROWS]):
        path = tmp_path / f"{number}.html"
        lines, whole = write_reports([path], rows, [])
        assert (lines, whole) == ([f"results written to {path}"], True)
        tags = read(path.read_text(encoding="utf-8"))
        assert tags.tags.count("main") == 1
    assert "Do not release: 2 of 7 claims fell, and 1 cannot be judged" in tags.text
