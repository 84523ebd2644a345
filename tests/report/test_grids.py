"""Tables in every form say the same, mark what is sure, and let the words of others through as words."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from statistics import NormalDist

import pytest

from pytest_sdbench.base.text import plain
from pytest_sdbench.commands.main import main
from pytest_sdbench.metrics.difference import Difference
from pytest_sdbench.report.cells import with_error
from pytest_sdbench.report.grids import CSV_HEADING, FORMATS, MARK, Cell, Grid, csv_text, latex_text
from pytest_sdbench.report.measured import Score, measured_grids, measured_scores
from tests.report.test_report import FORGED, HIDDEN, rendered, row

GRID = Grid(
    "Ours",
    ("Model", "FID ↓"),
    (
        (Cell("a"), Cell("1.02", "0.11", best=True)),
        (Cell("b"), Cell("1.73", "0.12", worse=True)),
        (Cell("c"), Cell("\u2013")),
    ),
    of="quick",
    url="https://example.org/x?a=b&c",
    note=f"{MARK} is worse",
)


def test_every_form_has_every_figure_in_its_own_marks() -> None:
    text = {name: form([GRID]) for name, form in FORMATS.items()}
    assert "### [Ours](https://example.org/x?a=b&c): quick" in text["github"]
    assert "| **1.02 ± 0.11** |" in text["github"]
    assert f"1.73 ± 0.12{MARK} |" in text["github"]
    assert r"a & \textbf{1.02 \ensuremath{\pm} 0.11} \\" in text["latex"]
    assert r"b & 1.73 \ensuremath{\pm} 0.12\textsuperscript{\textdagger} \\" in text["latex"]
    assert r"\begin{tabular}{lr}" in text["latex"]
    assert r"\caption{Ours: quick. \textsuperscript{\textdagger} is worse}" in text["latex"]
    assert '<td style="text-align: right"><strong>1.02 ± 0.11</strong></td>' in text["html"]
    assert f"1.73 ± 0.12<sup>{MARK}</sup>" in text["html"]
    assert '<caption><a href="https://example.org/x?a=b&amp;c">Ours</a>: quick</caption>' in text["html"]
    assert text["csv"].splitlines() == [
        ",".join(CSV_HEADING),
        "Ours: quick,a,FID ↓,1.02,0.11,yes,",
        "Ours: quick,b,FID ↓,1.73,0.12,,yes",
    ]


# --- words of others -------------------------------

WORDS = [
    *(FORGED, HIDDEN, "a\\", "\\input{/etc/passwd}", "$x$ % & # _ { } ~ ^", "a & b \\\\ \\hline", "^^5c"),
    *(
        "=1+1",
        "+1+1",
        "-1+1",
        "@SUM(A1)",
        "'=1",
        "\t=1",
        '=HYPERLINK("x")',
        'a,"b"',
        "<b>",
        "&amp;",
        "[x]",
        "*x",
        "\uff1d1+1",
        "a--b",
    ),
]


def hostile(text: str) -> Grid:
    rows = ((Cell(text), Cell(text, text, best=True, worse=True)),)
    return Grid(text, (text, text), rows, of=text, url=text, note=text)


class Page(HTMLParser):
    """Takes down elements and text."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.elements.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.parametrize("text", WORDS, ids=ascii)
def test_words_are_words_in_html_and_markdown(text: str) -> None:
    said, page = plain(" ".join(text.split())), Page()
    page.feed(FORMATS["html"]([hostile(text)]))
    ours = {"table", "caption", "thead", "tbody", "tr", "th", "td", "strong", "sup", "p"}
    assert set(page.elements) <= ours
    assert said in page.text
    html = rendered(FORMATS["github"]([hostile(text)]))
    assert not re.findall(r"<(?:script|a|img|h1|code|em|b)\b", html)
    # A space of no width keeps a name from being called.
    assert said in unescape(re.sub(r"<[^>]+>|\u200b", "", html))


@pytest.mark.parametrize("text", WORDS, ids=ascii)
def test_words_are_words_in_latex(text: str) -> None:
    said = plain(" ".join(text.split()))
    shown = latex_text(text)
    # What is left without the commands that stand for characters is no command.
    bare = re.sub(r"\\(?:text\w+|ensuremath)\{(?:\\\w+)?\}|\\[&%$#_{}]|-\{\}", "", shown)
    assert not re.findall(r"[\\&%$#_{}~^]", bare)
    for command, char in ((r"\textbackslash{}", "\\"), ("-{}", "-"), (r"\textasciicircum{}", "^")):
        assert shown.count(command) == said.count(char)
    text_of_all = FORMATS["latex"]([hostile(text)])
    assert all(char.isprintable() or char == "\n" for char in text_of_all)
    assert len(re.findall(r"^\\begin\{tabular\}\{lr\}$", text_of_all, re.M)) == 1
    (line,) = [each for each in text_of_all.splitlines() if r"\textbf{" in each]
    assert len(re.findall(r"(?<!\\)&", line)) == 1
    assert not line.startswith(("[", "*"))


@pytest.mark.parametrize("text", WORDS, ids=ascii)
def test_words_are_words_in_a_spreadsheet(text: str) -> None:
    said = plain(" ".join(text.split()))
    _, fields = csv.reader(io.StringIO(FORMATS["csv"]([hostile(text)])))
    assert fields[1][:1] not in tuple("=+-@\t\r\uff1d")
    assert fields[1].removeprefix("'") == said.removeprefix("'") or fields[1] == f"'{said}"
    assert all(char.isprintable() for field in fields for char in field)


@pytest.mark.parametrize("text", ["-0.3", "+1.5", "1e-5", "-1.5e+3", "0.860B", "-5", "1,024"])
def test_a_number_stays_one(text: str) -> None:
    assert csv_text(text) == text


@pytest.mark.parametrize("url", ["javascript:alert(1)", "https://[x", "data:text/html,x", "//x", None])
def test_no_link_leads_elsewhere_than_to_the_web(url: str | None) -> None:
    assert "<a" not in FORMATS["html"]([replace(GRID, url=url)])


# --- which differences are sure -------------------------------


def score(card: str, value: float, error: float | None = 0.1, metric: str = "fid", n: int = 5000) -> Score:
    return Score(card, "p", metric, value, error, n)


def marks(scores: list[Score], difference: Difference | None = None) -> dict[str, tuple[bool, bool]]:
    (grid,) = measured_grids([], scores, lambda *_: difference)
    return {cells[0].text: (cells[1].best, cells[1].worse) for cells in grid.rows}


@pytest.mark.parametrize(("metric", "best"), [("fid", "a"), ("clip_score", "c")])
def test_the_best_is_bold_and_what_is_surely_worse_marked(metric: str, best: str) -> None:
    found = marks([score(name, value, 0.001, metric) for name, value in (("a", 0.1), ("b", 0.2), ("c", 0.3))])
    assert found == {name: (name == best, name != best) for name in "abc"}


@pytest.mark.parametrize(
    ("value", "error", "sign", "shown"),
    [
        (1.234, 0.056, "", "1.23 ± 0.06"),
        (-0.0004, 0.0004, "+", "-0.0004 ± 0.0004"),
        (-0.001, None, "", "0.00"),
        (-0.001, 0.2, "+", "+0.00 ± 0.20"),
        (0.0, 0.0, "", "0.00"),
        (-0.0, 0.0, "+", "+0.00"),
        (1.0, 1e-30, "", "1.00"),
        (0.93024, 0.00096, "", "0.9302 ± 0.0010"),
    ],
)
def test_an_error_is_never_printed_as_none_and_a_zero_has_no_minus(
    value: float, error: float | None, sign: str, shown: str
) -> None:
    assert with_error(value, error, 2, sign) == shown


@pytest.mark.parametrize("cards", [2, 3, 10])
def test_a_mark_is_sure_for_all_pairs_of_a_column_together(cards: int) -> None:
    pairs = cards * (cards - 1) // 2
    limit = NormalDist().inv_cdf(1 - 0.025 / pairs) * 0.1 * 2**0.5
    for by, marked in ((0.99 * limit, False), (1.01 * limit, True)):
        scores = [
            score("best", 1.0),
            score("other", 1.0 + by),
            *(score(f"x{at}", 1.0) for at in range(cards - 2)),
        ]
        assert marks(scores)["other"] == (False, marked)
        assert marks(scores)["best"] == (True, False)


@pytest.mark.parametrize(
    ("paired", "value", "marked"), [(True, 0.1, True), (False, 0.1, False), (True, 0.5, False)], ids=str
)
def test_the_paired_error_counts_where_it_is_of_these_figures(
    paired: bool, value: float, marked: bool
) -> None:
    less = Difference("fid", value, 0.01, 0.14, paired, 5000)
    assert marks([score("a", 1.0), score("b", 1.1)], less)["b"] == (False, marked)


@pytest.mark.parametrize(
    "scores",
    [
        [score("a", 1.0, None), score("b", 9.0)],
        [score("a", 1.0, n=19), score("b", 9.0, n=19)],
        [score("a", 1.0, 0.0), score("b", 1.0, 0.0)],
    ],
    ids=["no error", "few", "equal"],
)
def test_what_is_not_sure_has_no_mark(scores: list[Score]) -> None:
    assert not any(worse for _, worse in marks(scores).values())


@pytest.mark.parametrize(("lost", "marked"), [(8, False), (9, True)])
def test_shares_of_few_images_are_compared_by_their_counts(lost: int, marked: bool) -> None:
    # Of four cards 6 pairs share the 5 %: 9 of 512 against none has a chance of 6 * 2 * 0.5^9 = 2.3 %.
    few = [score(name, count / 512, 0.002, "lost", 512) for name, count in (("a", lost), ("b", 0), ("c", 0))]
    assert marks([*few, score("d", 0.0, None, "lost", 512)])["a"] == (False, marked)


@pytest.mark.parametrize(("prompts", "marked"), [(1000, True), (50, False)])
def test_lost_pictures_of_one_prompt_count_as_one(prompts: int, marked: bool) -> None:
    # 10 % against 5 % of 1,000: five standard errors of as many images, and one of 50 prompts.
    shares = [score(n, p, (p * (1 - p) / prompts) ** 0.5, "lost", 1000) for n, p in (("a", 0.05), ("b", 0.1))]
    assert marks(shares)["b"] == (False, marked)


def test_scores_of_few_prompts_have_no_mark() -> None:
    few = [replace(score(name, value), prompts=19) for name, value in (("a", 1.0), ("b", 9.0))]
    assert marks(few)["b"] == (False, False)
    recorded = [score("a", 1.0), score("b", 1.1)]
    assert marks(recorded, Difference("fid", 0.1, 0.01, 0.14, True, 5000, prompts=19))["b"] == (False, False)


def test_pairs_beside_another_checkpoint_are_another_table() -> None:
    one = [
        replace(score(name, 30.0, metric="psnr"), reference=of) for name, of in zip("abc", "xxy", strict=True)
    ]
    grids = measured_grids([], one)
    assert [(grid.of, len(grid.rows)) for grid in grids] == [
        ("p, 5,000 images, beside x", 2),
        ("p, 5,000 images, beside y", 1),
    ]


def test_protocols_of_one_name_that_differ_have_a_table_each() -> None:
    """Each card found its own file of that name: the figures are not of the same images."""
    about = {"metric": "fid", "protocol": "p", "measured": 1.0, "standard_error": 0.1, "n": 512}
    rows = [
        row("quality", card=card, extra={"protocol_fingerprint": content}, **about)
        for card, content in (("a", "1" * 16), ("b", "2" * 16), ("c", "2" * 16))
    ]
    found = [(grid.of, len(grid.rows)) for grid in measured_grids([], measured_scores(rows))]
    assert found == [(f"p ({'1' * 16}), 512 images", 1), (f"p ({'2' * 16}), 512 images", 2)]


def test_a_single_card_is_best_of_nothing_and_each_protocol_has_a_table() -> None:
    rows = [
        row(
            "quality",
            card=card,
            metric="fid",
            protocol=protocol,
            measured=1.0,
            standard_error=0.1,
            n=n,
            name=name,
        )
        for card, protocol, n, name in (
            *(("a", "p", 512, "fid"), ("a", "p", 512, "fid-recorded")),
            *(("b", "p", 512, "fid"), ("b", "q", 512, "fid"), ("b", "p", 64, "fid")),
        )
    ]
    grids = measured_grids([], measured_scores([*rows, row("quality", metric="fid", measured=None)]))
    assert [(grid.of, len(grid.rows)) for grid in grids] == [
        ("p, 512 images", 2),
        ("q, 512 images", 1),
        ("p, 64 images", 1),
    ]
    assert [bool(grid.note) for grid in grids] == [True, False, False]
    assert not grids[1].rows[0][1].best


@pytest.mark.slow
@pytest.mark.parametrize("form", list(FORMATS))
def test_the_packaged_tables_are_written_in_every_form(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "--format", form]) == 0
    text = capsys.readouterr().out
    for figure in ("13.05", "0.86B", "0.9143"):
        assert figure in text
    # By their pictures the students are surely behind on CLIP score, and by their two errors are not.
    marks = {
        "github": "0.9143 ± 0.0006†",
        "latex": r"0.9143 \ensuremath{\pm} 0.0006\textsuperscript{\textdagger}",
    }
    marks |= {"html": "0.9143 ± 0.0006<sup>†</sup>", "csv": "CLIP score ↑,0.9143,0.0006,,yes"}
    assert marks[form] in text
