"""What GitHub shows of a run is true, fits, and is made of text alone."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from pytest_sdbench.base.paths import reference
from pytest_sdbench.base.text import plain
from pytest_sdbench.cards.card import read_card
from pytest_sdbench.report.annotations import MOST, Annotation, annotations_of
from pytest_sdbench.report.cells import markdown
from pytest_sdbench.report.results import Row
from pytest_sdbench.report.summary import summary
from tests.report.pages import images_of, row, score

FORGED = (
    "x | y\n::error file=a.py,line=1::forged\r\n| a | <b>b</b> [c](https://evil.example) `d` @org/team #12"
)
TURNED = "\u202eevil\u2066 \x1b[31mred\x1b[0m ##[error]forged"
NAMES = {"error", "warning", "notice", "add-mask", "stop-commands"}


def commands(log: str) -> list[tuple[str, dict[str, str], str]]:
    """Read a log as the runner does (actions/runner, ``ActionCommand.cs``): commands, properties, data."""

    def text(escaped: str) -> str:
        for code, char in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
            escaped = escaped.replace(code, char)
        return escaped

    found = []
    for line in re.split(r"\r\n|\r|\n", log):
        if told := re.match(r"\s*::(.*?)::(.*)", line):
            name, _, rest = told[1].partition(" ")
            if name in NAMES:
                pairs = (each.partition("=") for each in rest.strip().split(",") if each)
                found.append((name, {key: text(value) for key, _, value in pairs}, text(told[2])))
        elif told := re.search(r"##\[([\w-]+)[^\]]*\](.*)", line):
            found += [(told[1], {}, told[2])] if told[1] in NAMES else []
    return found


@pytest.mark.parametrize("words", ["50 %: a, b", "%25 %0A %3A", "a\nb\r\nc", "::error::x", "=,=", "é \u202e"])
def test_the_runner_reads_what_was_meant(words: str) -> None:
    one = Annotation("error", words, words, words, 7)
    assert commands(one.command) == [("error", {"file": words, "line": "7", "title": words.rstrip()}, words)]
    assert commands(replace(one, file="", level="warning").command) == [
        ("warning", {"title": words.rstrip()}, words)
    ]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A checkout with two cards in it."""
    folder = tmp_path / "repository" / "cards"
    folder.mkdir(parents=True)
    text = (reference() / "cards" / "scenes-tiny-lcm.md").read_text(encoding="utf-8")
    (folder / "lcm.md").write_text(text, encoding="utf-8")
    (folder / "a, b: c%.md").write_bytes(text.replace("\n", "\r\n").encode())
    (folder / "broken.md").write_text(text.replace("  size:", "  sizes:"), encoding="utf-8")
    return tmp_path / "repository"


def test_a_claim_that_fell_is_told_on_its_own_line(repository: Path) -> None:
    elsewhere = repository.parent / "elsewhere.md"
    elsewhere.write_bytes((repository / "cards" / "lcm.md").read_bytes())
    rows, files, wanted = [], {}, {}
    for path in (*sorted((repository / "cards").glob("[al]*.md")), elsewhere):
        lines = path.read_text(encoding="utf-8").split("\n")
        for at, claim in enumerate(read_card(path).claims[:3]):
            verdict = ("fail", "inconclusive", "pass")[at]
            reason = f"claim {len(files)} is worse"
            mine = row(card=path.stem, name=claim.id, metric=claim.metric, verdict=verdict, reason=reason)
            rows.append(mine)
            files[mine.node_id] = path
            if verdict != "pass":
                (line,) = [n for n, text in enumerate(lines, 1) if re.search(rf"value: {claim.text}\b", text)]
                wanted[reason] = (path, line, verdict)
    cards = [read_card(path) for path in dict.fromkeys(files.values())]
    for open_fails in (True, False):
        found = annotations_of(rows, cards, files, repository, open_fails=open_fails)
        assert len(found) == len(wanted)
        for name, properties, data in commands("\n".join(each.command for each in found)):
            path, line, verdict = wanted[data.rpartition("md, line ")[2].partition(": ")[2] or data]
            assert name == ("error" if verdict == "fail" or open_fails else "warning")
            says = "fell" if verdict == "fail" else "is too close to call"
            assert properties["title"].startswith(f"{path.stem}: ")
            assert properties["title"].endswith(says)
            if path == elsewhere:
                assert "file" not in properties
                assert f"elsewhere.md, line {line}: " in data
            else:
                assert (properties["file"], properties["line"]) == (f"cards/{path.name}", str(line))


def test_a_broken_card_and_what_breaks_all_claims_are_told_once(repository: Path) -> None:
    broken, card = repository / "cards" / "broken.md", repository / "cards" / "lcm.md"
    names = [claim.id for claim in read_card(card).claims[:4]]
    rows = [row("card", card="broken", verdict="error", reason="unknown key")]
    rows += [row(card="lcm", name=name, verdict="error", reason="no weights") for name in names]
    files = {each.node_id: broken if each.card == "broken" else card for each in rows}
    first, second = sorted(annotations_of(rows, [], files, repository), key=lambda each: each.file)
    text = broken.read_text(encoding="utf-8").splitlines()
    assert (first.file, text[first.line - 1].split()[0]) == ("cards/broken.md", "sizes:")
    assert (second.file, second.title.endswith("cannot be judged, and 3 more")) == ("cards/lcm.md", True)


def test_no_more_are_told_than_github_shows(repository: Path) -> None:
    card = repository / "cards" / "lcm.md"
    rows = [
        score("ssim", 2.0 + at, card="lcm", name=f"claim-{at}", reason=f"reason {at}") for at in range(25)
    ]
    found = annotations_of(rows, [], {each.node_id: card for each in rows}, repository)
    assert [each.message for each in found[:-1]] == [f"reason {at}" for at in range(24, 15, -1)]
    assert len(found) == MOST
    assert found[-1].title == "16 more"
    twin = replace(rows[0], node_id="twin", kind="recorded")
    files = {rows[0].node_id: card, "twin": card}
    assert len(annotations_of([replace(rows[0], kind="published"), twin], [], files, repository)) == 1


def shown_rows() -> list[Row]:
    """Return rows of every verdict."""
    remedy = {"remedy": "pip install x"}
    return [
        score("ssim", 3.0, extra={"worst": images_of([17, 4])}),
        score("psnr", 2.2, extra={"worst": images_of([5])}),
        score("lpips", 0.95),
        score("feature_cosine", 0.1),
        row("size", name="unet", measured=10.0, claimed=10.0),
        row("memory", verdict="unavailable", reason="no CUDA. pip install x", extra=remedy),
        row(name="other", verdict="mismatch", reason="another protocol"),
    ]


def test_the_summary_says_what_fell_and_what_was_not_measured() -> None:
    card = read_card(reference() / "cards" / "scenes-tiny-lcm.md")
    text = summary(shown_rows(), [card], status=1, instead={card.name: "./candidate"}, ending=["The end."])
    assert text.startswith("### ❌ Do not release: 2 of 5 claims fell\n")
    assert "**scenes-tiny-lcm** on `./candidate`: ✕ 2 fail · ? 1 inconclusive · ✓ 2 pass" in text
    fell = [line for line in text.partition("<details>")[0].splitlines() if line.startswith("| ✕")]
    assert [re.search(r"\*\*(\w+)", line)[1] for line in fell] == ["SSIM", "PSNR"]
    assert "**Worst pair:** image 17, “prompt 17”: SSIM 0.5000, and 1.0000 for the picture" in text
    assert "<details><summary>2 claims held</summary>" in text
    assert "1 unavailable: no CUDA → pip install x (scenes-tiny-lcm: memory)" in text
    assert text.endswith("The end.\n")


@pytest.mark.parametrize(
    ("rows", "status", "said"),
    [
        ([], 4, "Cannot tell: pytest ended with status 4 (the command line or the configuration is wrong)"),
        ([], 0, "Cannot tell: no claim was looked at"),
        ([score("ssim", 0.0)], 0, "Release: the one claim holds"),
        (
            [score("ssim", 0.0)],
            2,
            "Cannot tell: the claims hold, but pytest ended with status 2 (the run was",
        ),
        ([score("ssim", 3.0)], 2, "Do not release: 1 of 1 claim fell"),
        ([score("ssim", 0.95)], 1, "Cannot tell: 1 of 1 claim is too close to call"),
    ],
)
def test_only_a_run_that_ended_well_is_a_release(rows: list[Row], status: int, said: str) -> None:
    assert said in summary(rows, status=status).splitlines()[0]


@pytest.mark.parametrize("room", [1 << 20, 60_000, 5_000, 1_000, 10, 0])
def test_a_summary_loses_rows_until_it_fits(room: int) -> None:
    known = score("ssim", 3.0, extra={"worst": images_of([17])})
    rows = [replace(known, node_id=str(at), name=str(at), reason=f"{at} ü" * 30) for at in range(1200)]
    text = summary(rows, ending=["The end."], room=room)
    assert len(text.encode()) <= room
    if room >= 1_000:
        assert text.startswith("### ❌ Do not release: 1200 of 1200 claims fell")
        assert text.endswith("The end.\n")
        assert "report" in text


@pytest.mark.parametrize("words", [FORGED, TURNED, "</details></td><script>", "` `` ```", "***_~~x~~_***"])
def test_the_words_of_others_are_words_of_a_summary(words: str) -> None:
    """The page has the same elements whatever they are, and shows them as they are, on one line."""

    def hostile(word: str) -> list[tuple[str, str]]:
        told = {"card": word, "name": word, "claimed_text": word, "reason": word, "protocol": word}
        worst = [images_of([3])[0] | {"prompt": word}]
        known = replace(score("ssim", 3.0, extra={"worst": worst}), **told, node_id="1")
        rows = [
            known,
            replace(known, node_id="2", metric=word, verdict="pass"),
            row("size", card="another", name=word, measured=1.0, claimed=1.0, verdict="fail", reason=word),
            row(card=word, name=word, verdict="unavailable", reason=word, extra={"remedy": word}),
        ]
        text = summary(rows, instead={word: word})
        tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)
        flat = [each for token in tokens for each in (token, *(token.children or ()))]
        ours = [each.content for each in flat if each.type in ("html_block", "html_inline")]
        assert all(
            re.fullmatch(r"<br>|</details>\n?|<details><summary>[^<]*</summary>\n?", each) for each in ours
        )
        assert commands(text) == []
        assert not re.search(r"(?<!\w)@\w|#\d(?!\d*;)", re.sub(r"`[^`]*`", "", text))
        return [(each.type, each.tag) for each in flat if each.type not in ("text", "text_special")]

    assert hostile(words) == hostile("harmless")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("@org/team", "@&#8203;org/team"),
        ("fixes #12 and a/b#3", "fixes #&#8203;12 and a/b#&#8203;3"),
        ("GH-7, a@b.example", "GH-&#8203;7, a@b.example"),
        ("é@org", "é@&#8203;org"),
        ("&#64;org", "\\&#&#8203;64;org"),
    ],
)
def test_nobody_is_called_by_the_text_of_a_card(text: str, shown: str) -> None:
    assert markdown(text) == shown


@pytest.mark.parametrize(
    "text", ["::error::x", "  ::add-mask::x", "\u00a0::stop-commands::x", "a ##[error]x", "\t##[add-mask]x"]
)
def test_no_text_commands_the_runner(text: str) -> None:
    assert commands(text)
    assert commands(plain(text)) == []
    assert plain(plain(text)) == plain(text)
    # A word may come to be the first one of a line that is wrapped.
    assert commands("\n".join(plain(f"a {text} {text}").split(" "))) == []
