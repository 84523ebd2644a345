"""The tables show what was published to the digit, and what was measured beside it; the JSON keeps it all."""

from __future__ import annotations

import json
import math
import pickle
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from pytest_sdbench.base.errors import CardError
from pytest_sdbench.base.paths import reference
from pytest_sdbench.base.text import plain
from pytest_sdbench.cards.card import Card, read_card
from pytest_sdbench.report.cells import NONE, billions, call_cells, link, markdown, size, table
from pytest_sdbench.report.devices import device_tables
from pytest_sdbench.report.markdown import results_markdown
from pytest_sdbench.report.published import published_tables
from pytest_sdbench.report.results import SCHEMA_VERSION, Row, read_results, results_json
from pytest_sdbench.report.terminal import terminal_tables
from pytest_sdbench.report.write import printable, write_reports

# Typed from the published tables, row by row.
BK_SDM = """
Stable Diffusion v1.4 | 13.05 | 36.76 | 0.2958 | 0.86B | 1.04B
BK-SDM-Base           | 15.76 | 33.79 | 0.2878 | 0.58B | 0.76B
BK-SDM-Base-2M        | 14.81 | 34.17 | 0.2883 | 0.58B | 0.76B
BK-SDM-Small          | 16.98 | 31.68 | 0.2677 | 0.49B | 0.66B
BK-SDM-Small-2M       | 17.05 | 33.10 | 0.2734 | 0.49B | 0.66B
BK-SDM-Tiny           | 17.12 | 30.09 | 0.2653 | 0.33B | 0.50B
BK-SDM-Tiny-2M        | 17.53 | 31.32 | 0.2690 | 0.33B | 0.50B
"""
RECORD_SHEET = """
Stable Diffusion v1.5 | 13.8705 | 19.4507 | 0.860B | 0.123B | 0.05B | 1.032B
tiny-sd               | 17.7266 | 23.0478 | 0.323B | 0.123B | 0.05B | 0.495B
tiny-sd-lcm-6400      | 22.1493 | 27.4531 | 0.323B | 0.123B | 0.05B | 0.495B
portrait-finetuned    | –       | –       | –      | –      | –     | –
"""  # noqa: RUF001


@pytest.fixture(scope="module")
def cards() -> list[Card]:
    return [read_card(path) for path in sorted((reference() / "cards").glob("*.md"))]


def cells(text: str) -> list[list[str]]:
    """Return the cells of all table lines, without headings and rules."""
    rows = [line.strip().strip("|") for line in text.splitlines() if "|" in line]
    table = [[cell.strip() for cell in row.split("|")] for row in rows]
    rules = [at for at, row in enumerate(table) if set("".join(row)) <= set(":-")]
    return [row for at, row in enumerate(table) if at not in rules and at + 1 not in rules]


def typed(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]


def test_both_published_tables_come_out_to_the_digit(cards: list[Card]) -> None:
    text = published_tables(cards)
    first, second, *_ = text.split("### ")[1:]
    assert cells(first) == typed(BK_SDM)
    assert cells(second) == typed(RECORD_SHEET)
    assert first.startswith("[BK-SDM model card](https://github.com/Nota-NetsPresso/BK-SDM)\n")
    for heading in ("FID ↓", "IS ↑", "CLIP score (ViT-g/14) ↑", "U-Net", "Whole"):
        assert heading in first
    for heading in ("FID 30K ↓", "FID 5K ↓", "U-Net", "Text encoder", "Image decoder", "Whole"):
        assert heading in second


def test_cards_without_published_figures_have_no_table_and_their_order_does_not_matter(
    cards: list[Card],
) -> None:
    assert published_tables(cards[::-1]).split("### ")[1] in published_tables(cards)
    assert "No figures" in published_tables([])
    rest = [card for card in cards if card.name != "portrait-finetuned"]
    assert "portrait-finetuned" not in published_tables(rest)


def test_figures_of_two_protocols_with_one_name_have_two_tables(cards: list[Card]) -> None:
    text = published_tables([card for card in cards if card.name.startswith("scenes-")])
    tables = dict(part.split("\n\n", 1) for part in text.split("### ")[1:])
    assert [title.partition(": ")[2] for title in tables] == [
        *("scenes-quick", "scenes-5k", "scenes-dpm10-quick", "scenes-lcm4-quick", "scenes-lcm4-5k"),
        *("scenes-portrait-quick", "scenes-portrait-5k"),
    ]
    assert tables["pytest-sdbench: scenes-5k"].count("| scenes-") == 5
    assert tables["pytest-sdbench: scenes-lcm4-5k"].count("| scenes-") == 1
    assert NONE not in tables["pytest-sdbench: scenes-quick"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("0.860e+9", "0.860B"),
        ("0.05e+9", "0.05B"),
        ("1.04e+9", "1.04B"),
        ("860000000", "0.860000000B"),
        ("0x1BCF08", "0x1BCF08"),
        ("many", "many"),
    ],
)
def test_a_count_keeps_the_digits_it_was_printed_with(text: str, shown: str) -> None:
    assert billions(text) == shown


def row(test: str, card: str = "bk-sdm-small", verdict: str = "pass", **values: object) -> Row:
    return Row.from_dict(
        {"node_id": f"{card}.md::{test}", "card": card, "test": test, "verdict": verdict} | values
    )


ROWS = [
    row("size", name="unet", claimed=482346884.0, claimed_text="0.49e+9", measured=482346884.0),
    row("size", name="whole", claimed=654897543.0, measured=654897544.0, verdict="fail", reason="one more"),
    row("compute", claimed=255.4e9, measured=255.4e9),
    row("speed", claimed=0.76, measured=0.7123, extra={"candidate_median": 2.5}),
    row("memory", verdict="unavailable", reason="needs CUDA"),
    row(
        "quality",
        name="coco30k-bksdm-fid",
        metric="fid",
        protocol="coco30k-bksdm",
        claimed=16.98,
        claimed_text="16.98",
        measured=17.01234,
        standard_error=0.1049,
        n=30000,
        margin=0.45,
        kind="published",
    ),
    row("quality", name="coco30k-bksdm-clip_score", verdict="unavailable", reason="no CLIP\nweights"),
    row(
        "quality",
        card="tiny-sd",
        name="unstated-30k-fid",
        metric="fid",
        protocol="coco30k-bksdm",
        claimed=17.7266,
        claimed_text="17.7266",
        measured=19.5,
        verdict="fail",
        reason="1.77 worse",
        kind="published",
    ),
    row("card", card="broken", verdict="error", reason="broken.md: line 3: a | b"),
]


def test_claimed_stands_beside_measured(cards: list[Card]) -> None:
    text = results_markdown(cards, ROWS, {"device": "cpu", "versions": {"torch": "2.15.0"}})
    lines = cells(text)
    assert "9 checks of 3 cards: 4 pass, 2 fail, 2 unavailable, 1 error." in text
    assert "Measured with device cpu, torch 2.15.0." in text
    size = next(line for line in lines if line[0] == "BK-SDM-Small" and "(0.49B)" in line[1])
    assert size == ["BK-SDM-Small", "482,346,884 (0.49B)", "–", "–", "**654,897,544, not 654,897,543**"]  # noqa: RUF001
    assert ["BK-SDM-Small", "255.4 G", "2.5", "0.712", "0.76", "–", "pass"] in lines  # noqa: RUF001
    fid = ["FID ↓", "coco30k-bksdm", "published", "16.98", "17.01 ± 0.10", "30,000", "0.45", "pass"]
    assert fid in lines
    # As many decimals as the claim has; an assumed protocol is labelled so.
    assumed = "coco30k-bksdm (assumed)"
    assert ["FID 30K ↓", assumed, "published", "17.7266", "19.5000", "–", "–", "**fail**"] in lines  # noqa: RUF001
    # A check that never ran shows what its card claims.
    clip = ["BK-SDM-Small", "CLIP score (ViT-g/14) ↑", "coco30k-bksdm", "0.2677", "unavailable"]
    assert clip in lines
    for reason in ("one more", "needs CUDA", "no CLIP weights", "1.77 worse", "broken.md: line 3"):
        assert text.count(reason) == 1


def test_a_reason_shared_by_many_cards_is_said_once() -> None:
    many = [row("memory", card=f"card-{at}", verdict="unavailable", reason="needs CUDA") for at in range(9)]
    text = results_markdown([], many)
    assert text.count("needs CUDA") == 1
    assert "memory of 9 cards" in text
    # Nothing measured makes a report all the same.
    assert "0 checks of 0 cards: none." in results_markdown([], [])
    assert terminal_tables([]) == ""
    lacks = "org/{0}: not in the hub cache. Fetch it, or give a copy: --sdbench-weights {0}=PATH"
    absent = [
        row("quality", card=f"c{at}", verdict="unavailable", reason=lacks.format(f"c{at}")) for at in (1, 2)
    ]
    text = terminal_tables(absent, verbose=True)
    assert "c1, c2" in text
    assert (
        "org/c1 and 1 more: not in the hub cache. Fetch it, or give a copy: --sdbench-weights CARD=PATH"
        in text
    )
    assert lacks.format("c1") in terminal_tables(absent[:1], verbose=True)
    # A reason of its own stays one.
    mismatch = row("quality", verdict="mismatch", reason="FID: one")
    assert "FID: one" in (told := terminal_tables([mismatch], verbose=True))
    assert " more: " not in told


def test_every_table_is_github_markdown_set_right(cards: list[Card]) -> None:
    text = published_tables(cards) + results_markdown(cards, ROWS)
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") - line.count("\\|") for line in lines}) <= 1
        if lines:
            assert lines[1].startswith("|:--")
            assert "-:|" in lines[1]


def test_what_a_card_leaves_untested_stands_in_every_report(tmp_path: Path) -> None:
    hub = tmp_path / "hub.md"
    hub.write_text("---\nlicense: mit\n---\n# Theirs\n", encoding="utf-8")
    card = read_card(hub)
    assert card.explained
    for text, show in (
        (terminal_tables(ROWS, [card], verbose=True), plain),
        (results_markdown([card], ROWS), markdown),
    ):
        for note in card.explained:
            assert f"- hub: {show(note)}" in text
    assert json.loads(results_json(ROWS, {}, {"hub": card.explained}))["untested"] == {
        "hub": list(card.explained)
    }


def test_json_gives_every_row_back() -> None:
    text = results_json(ROWS, {"versions": {"torch": "2.15.0"}, "place": Path("x")})
    content = json.loads(text)
    assert content["schema_version"] == SCHEMA_VERSION == 1
    assert content["summary"] == {"pass": 4, "fail": 2, "unavailable": 2, "error": 1}
    rows, environment = read_results(text)
    assert rows == ROWS
    assert environment == {"versions": {"torch": "2.15.0"}, "place": "x"}


def test_json_has_no_nan_and_survives_later_keys() -> None:
    text = results_json([row("speed", measured=math.nan, extra={"times": [1.0, math.inf]})], {"x": math.nan})
    content = json.loads(text, parse_constant=pytest.fail)
    assert content["results"][0]["measured"] is None
    assert content["results"][0]["extra"] == {"times": [1.0, None]}
    assert Row.from_dict(content["results"][0] | {"of a later version": 1}).card == "bk-sdm-small"


@pytest.mark.parametrize("text", ["{}", '{"schema_version": 2, "results": []}'])
def test_another_file_is_not_taken_for_results(text: str) -> None:
    with pytest.raises(ValueError, match=r"schema version 1.*--sdbench-report results\.json"):
        read_results(text)


@pytest.mark.parametrize(
    "damage",
    [{"results": None}, {"results": [7]}, {"results": [{"node_id": "x"}]}, {"environment": []}],
    ids=str,
)
def test_damaged_results_are_refused(damage: dict[str, object]) -> None:
    content = json.loads(results_json(ROWS, {})) | damage
    with pytest.raises(ValueError, match=next(iter(damage))):
        read_results(json.dumps(content))
    with pytest.raises(ValueError, match="nested too deeply"):
        read_results("[" * 100_000)


FORGED = (
    "a|b\n\n# Passed <script>alert(1)</script> [x](https://evil.example) ![y](//z) `c` **d** _e_ &lt; www.f"
)
HIDDEN = "\x1b[31mred\x1b]8;;https://evil.example\x07 \x9b2J\u202egnp \u2066\u200b\r\x08\x00\u2028"


def rendered(text: str) -> str:
    """Return the HTML that a reader sees."""
    reader = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable(["table", "strikethrough"])
    html: str = reader.render(text)
    return html


def test_markdown_shows_the_words_of_others_as_words() -> None:
    html = rendered(f"- {markdown(FORGED)}\n\n{table(['Model', FORGED], [[FORGED, 'clip_score']])}\n")
    assert not re.findall(r"<(?:script|a|img|h1|code|strong|em)\b", html)
    shown = unescape(re.sub(r"<[^>]+>", "", html))
    assert shown.count(" ".join(FORGED.split())) == 3
    assert "clip_score" in table(["a"], [["clip_score"]])
    assert html.count("<li>") == html.count("<table>") == 1


@pytest.mark.parametrize(
    "text",
    [
        *(FORGED, HIDDEN, "a\\", "\\|", "\\<b>", "_", "*", "~~s~~", "$x$", "&amp;", "<!--"),
        *("# x", "## ", "1. x", "12) x", "- x", "+ x", "> x", "-0.3", "16.98 (x)", "a [b] c]"),
    ],
)
def test_a_text_comes_out_of_markdown_as_it_went_in(text: str) -> None:
    cells = rendered(table(["a", "b"], [[text, "x"]]))
    assert [unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", cells)] == [
        plain(" ".join(text.split())),
        "x",
    ]
    (point,) = re.findall(r"<li>(.*?)</li>", rendered(f"- {markdown(text)}"))
    assert unescape(point) == plain(" ".join(text.split()))


@pytest.mark.parametrize(
    ("text", "url", "leads"),
    [
        ("Rombach et al. [2022]", "https://good.example/a(b)", True),
        ("SD](http://evil.example)", "https://good.example", True),
        ("x", "https://[x", False),
        ("x", "javascript:alert(1)", False),
    ],
)
def test_a_link_leads_where_it_says(text: str, url: str, leads: bool) -> None:
    html = rendered(link(text, url))
    assert re.findall(r'href="([^"]*)"', html) == (
        [url.replace("(", "%28").replace(")", "%29")] if leads else []
    )
    assert unescape(re.sub(r"<[^>]+>", "", html)).strip() == text


def test_nothing_of_a_text_moves_a_terminal() -> None:
    for text in (HIDDEN, FORGED):
        assert all(char.isprintable() for char in plain(text))
        assert all(char.isprintable() or char == "\n" for char in markdown(text))
    for text in ("Größe 大きい\u3000図", "👩\u200d🚀 plain  two", "\u0645\u06cc\u200c"):
        assert plain(text) == text
    error = CardError(HIDDEN, file=f"a\n{HIDDEN}.md", key=HIDDEN, found=HIDDEN, remedy=HIDDEN)
    assert all(char.isprintable() for char in str(error))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://e.org/a?b=c#d", "[N](https://e.org/a?b=c#d)"),
        ("https://e.org/a_(b)", "[N](https://e.org/a_%28b%29)"),
        ("https://e.org/) <script>", "[N](https://e.org/%29%20%3Cscript%3E)"),
        ("javascript:alert(1)", "N"),
        ("data:text/html,x", "N"),
        (None, "N"),
    ],
)
def test_a_source_leads_to_the_web_alone(url: str | None, shown: str) -> None:
    assert link("N", url) == shown


def test_every_string_of_a_run_is_shown_as_text(tmp_path: Path) -> None:
    hub = tmp_path / "hub.md"
    said = json.dumps(FORGED + HIDDEN)
    figures = (
        f"[{{type: fid, value: 3, name: {said}}}, {{type: {said}, value: 1}}, {{type: kid, value: {said}}}]"
    )
    dataset, source = f"{{type: {said}, name: {said}, config: {said}}}", f"{{name: {said}, url: {said}}}"
    result = f"{{task: {{type: t}}, dataset: {dataset}, metrics: {figures}, source: {source}}}"
    hub.write_text(f"---\nmodel-index:\n- {{name: {said}, results: [{result}]}}\n---\n", encoding="utf-8")
    card = replace(read_card(hub), name=FORGED + HIDDEN)
    words = dict.fromkeys(("name", "protocol", "reason", "kind", "claimed_text", "metric"), FORGED + HIDDEN)
    tests = ("size", "compute", "speed", "memory", "quality", "calibration", FORGED + HIDDEN)
    ends = ("fail", "error")
    rows = [row(test, card=card.name, verdict=end, **words) for test in tests for end in ends]
    beside = {"beside": {"card": HIDDEN, "difference": 1, "standard_error": None}}
    rows += [replace(each, measured=1.0, claimed=2.0, extra=beside) for each in rows]
    for text in (
        results_markdown([card], rows, {"device": FORGED + HIDDEN}),
        published_tables([card]),
        device_tables([(FORGED, read_card(reference() / "cards" / "tiny-sd.md").devices)]),
    ):
        assert all(char.isprintable() or char == "\n" for char in text)
        assert not re.findall(r"<(?:script|a|img|em)\b", rendered(text))
        assert not re.search(r"<h1>(?!Results)", rendered(text))
    for verbose in (False, True):
        text = terminal_tables(rows, [card], verbose=verbose)
        assert all(char.isprintable() or char == "\n" for char in text)
        assert not [line for line in text.splitlines() if line.startswith("# Passed")]


# --- rows that cannot be shown -------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"measured": "many"},
        {"claimed": [1], "measured": 2.0},
        {"measured": 1.0, "standard_error": "little"},
        {"measured": 1.0, "extra": {"beside": {}}},
        {"measured": 1.0, "extra": {"requested": "x"}, "n": 5},
        {"reason": 5},
        {"claimed_text": 7, "measured": 1.0},
        {"extra": {"x": {1, 2}, ("a",): math.nan}, "measured": 1.0, "margin": "wide"},
        {"card": ["x"]},
        {"test": None, "reason": "x"},
    ],
    ids=str,
)
@pytest.mark.parametrize("test", ["size", "compute", "speed", "memory", "quality"])
def test_a_row_that_cannot_be_shown_is_an_error_that_shows_it(
    test: str, values: dict[str, object], tmp_path: Path
) -> None:
    bad = Row.from_dict({"node_id": "x", "card": "c", "test": test, "metric": "fid", "name": "unet"} | values)
    rows = [*ROWS, bad]
    found = printable(rows, [])
    assert found[:-1] == ROWS
    if found[-1] != bad:
        assert found[-1].verdict == "error"
        assert "cannot be shown" in found[-1].reason
        for value in values.values():
            assert repr(value)[:20] in found[-1].reason
    assert write_reports([tmp_path / "r.md", tmp_path / "r.json"], found, [])
    assert "coco30k-bksdm" in (tmp_path / "r.md").read_text(encoding="utf-8")
    assert terminal_tables(found)
    assert len(json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["results"]) == len(rows)


# --- figures of several datasets, models and namesakes -------------------------------

TWO = [
    ("coco|MS-COCO 2014|fid, value: 13.05", "mjhq|MJHQ-30K|fid, value: 28.9"),
    ("coco|MS-COCO 2014|fid, value: 13.05", "parti|PartiPrompts|clip_score, value: 0.31"),
    ("coco|COCO 2014|fid, value: 13.05", "coco|COCO 2017|fid, value: 28.9"),
    ("coco|COCO 2014|fid, value: 13.05", "coco|COCO 2017|clip_score, value: 0.31"),
    ("coco|COCO, config: cfg-3|fid, value: 13.05", "coco|COCO, config: cfg-8|fid, value: 28.9"),
    (
        "coco|COCO, args: {num_samples: 30000}|fid, value: 13",
        "coco|COCO, args: {num_samples: 5000}|fid, value: 28",
    ),
    ("coco|COCO|fid, value: 13.05", "coco|COCO|fid, verified: true, value: 28.9"),
]


@pytest.mark.parametrize("block", ["", "sdbench: {}\n"], ids=["hub", "ours"])
@pytest.mark.parametrize("two", TWO, ids=str)
def test_every_figure_stands_in_a_table_under_a_heading_of_its_own(
    two: tuple[str, str], block: str, tmp_path: Path
) -> None:
    results = "".join(
        f"  - {{task: {{type: t}}, dataset: {{type: {kind}, name: {name}}}, metrics: [{{type: {figure}}}]}}\n"
        for kind, name, figure in (each.split("|") for each in two)
    )
    card = tmp_path / "card.md"
    card.write_text(f"---\n{block}model-index:\n- name: M\n  results:\n{results}---\n", encoding="utf-8")
    text = published_tables([read_card(card)])
    figures = [each.rpartition("value: ")[2] for each in two]
    rows = cells(text)
    assert sorted(cell for line in rows for cell in line if cell not in ("M", NONE)) == sorted(figures)
    kinds, names = ([each.split("|")[at].partition(",")[0] for each in two] for at in (0, 1))
    headings = [line for line in text.splitlines() if line.startswith("| Model")]
    assert len(rows) == len(set(kinds)) == len(headings)
    assert all(name in text for name in names if len(set(names)) > 1)
    for line in headings:
        columns = [column.strip() for column in line.strip("|").split("|")]
        assert len(set(columns)) == len(columns)


def test_each_of_several_models_has_a_row(tmp_path: Path) -> None:
    result = "{task: {type: t}, dataset: {type: a, name: A}, metrics: [{type: fid, value: %s}]}"
    pairs = (("T", 13.05), ("S", 17.12))
    models = "".join(f"- {{name: {name}, results: [{result % value}]}}\n" for name, value in pairs)
    card = tmp_path / "both.md"
    card.write_text(f"---\nmodel-index:\n{models}---\n# Both\n", encoding="utf-8")
    assert cells(published_tables([read_card(card)])) == [["T (Both)", "13.05"], ["S (Both)", "17.12"]]


def test_of_variants_the_one_that_does_not_hold_is_shown() -> None:
    """A project's fixtures may give a card several runs: beside a fail stands the figure that failed."""
    rows = [
        row("compute", measured=100e6, extra={"variant": "fp32"}),
        row("compute", measured=200e6, verdict="fail", extra={"variant": "fp16"}),
        row("size", name="unet", measured=10.0, extra={"variant": "fp32"}),
        row("size", name="unet", claimed=10.0, measured=11.0, verdict="fail", extra={"variant": "fp16"}),
    ]
    assert call_cells(rows, "bk-sdm-small")[0] == "200.0 M"
    assert size(rows, "bk-sdm-small", "unet") == "11, not 10"
