"""Tables of cards: every figure, every card, and nothing that a card can forge."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pytest_sdbench.base.errors import CardError
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.commands.doctor import examine
from pytest_sdbench.commands.main import main
from pytest_sdbench.commands.plan_cost import figures, plan
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.report.results import Row, results_json
from tests.project import IMAGES, make_card, make_protocol
from tests.report.test_report import FORGED, HIDDEN


def namesakes(folder: Path) -> list[Path]:
    """Write two cards of one name and one title."""
    paths = [folder / place / "v1" / "README.md" for place in ("x", "y")]
    for path, fid in zip(paths, (9.5, 8.5), strict=True):
        make_card(path, claims={"fid": fid}, checkpoint=None, protocols=[], protocol="coco5k")
    return paths


def test_namesakes_have_a_row_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", *map(str, namesakes(tmp_path))]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| Mini")]
    assert [line.split("|")[1:3] for line in rows] == [
        [" Mini (x/v1) ", "     9.5 "],
        [" Mini (y/v1) ", "     8.5 "],
    ]


def test_protocols_of_one_name_have_a_table_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # x and y measured the same; z has since had its protocol changed, and was measured before that.
    steps = {"x": 10, "y": 10, "z": 20}
    cards, made = [], {}
    for place, count in steps.items():
        file = make_protocol(tmp_path / place / "protocols" / "mini.yaml")
        file.write_text(re.sub(r"\bsteps: \d+", f"steps: {count}", file.read_text()))
        made[place] = load_protocol(file).fingerprint
        record = {"protocol": "mini", "metric": "clip_score", "value": 0.31, "n": IMAGES}
        cards.append(
            make_card(
                tmp_path / place / f"{place}.md",
                claims={},
                title=place,
                records=[record | {"protocol_fingerprint": made[place]}],
            )
        )
    make_protocol(tmp_path / "z" / "protocols" / "mini.yaml")
    assert main(["table", *map(str, cards)]) == 0
    out = capsys.readouterr().out.splitlines()
    headings = [line for line in out if line.startswith("### Measured")]
    assert [line.split("(")[1].split(")")[0] for line in headings] == [made["x"], made["z"]]
    assert [line.split("|")[1].strip() for line in out if "0.31" in line] == ["x", "y", "z"]


def test_figures_of_two_links_of_one_source_are_two_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2):
        source = f"{{name: paper, url: https://{number}.example}}"
        metric = f"{{type: fid, value: 1{number}.05}}"
        of = "task: {type: text-to-image}, dataset: {type: x, name: X}"
        result = f"{{{of}, metrics: [{metric}], source: {source}}}"
        text = f"---\nmodel-index:\n- name: m\n  results:\n  - {result}\n---\n"
        (tmp_path / f"m{number}.md").write_text(text)
    assert main(["table", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for number in (1, 2):
        assert f"[paper](https://{number}.example)" in said
        table = said.split(f"https://{number}.example")[1].split("###")[0]
        assert f"1{number}.05" in table
        assert f"1{3 - number}.05" not in table


def test_a_file_s_ending_says_in_which_form_a_table_is(tmp_path: Path) -> None:
    (card,) = namesakes(tmp_path)[:1]
    for ending, begins in ((".csv", b"\xef\xbb\xbf"), (".tex", b"\\begin"), (".html", b"<"), (".md", b"#")):
        out = tmp_path / f"t{ending}"
        assert main(["table", str(card), "-o", str(out)]) == 0
        assert begins in out.read_bytes()[:400]


def test_what_is_not_comparable_is_in_no_table_of_its_protocol_and_variants_have_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"metric": "fid", "protocol": "scenes-5k", "n": 5000, "standard_error": 0.01, "name": "x"}
    rows = [
        Row("a", "one", "quality", measured=1.25, verdict="pass", extra={"variant": "fp16"}, **known),
        Row("b", "one", "quality", measured=2.25, verdict="fail", extra={"variant": "fp32"}, **known),
        Row("c", "two", "quality", measured=0.75, verdict="mismatch", **known),
    ]
    (tmp_path / "r.json").write_text(results_json(rows, {}))
    assert main(["table", "scenes-tiny", "--results", str(tmp_path / "r.json"), "--format", "csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("one (fp16)" in line and "1.25" in line for line in lines)
    assert any("one (fp32)" in line and "2.25" in line for line in lines)
    assert not any("0.75" in line for line in lines)


def test_doctor_tells_namesakes_apart(tmp_path: Path) -> None:
    paths = namesakes(tmp_path)
    paths[1].write_text("---\nsdbench: no\n---\n", encoding="utf-8")
    findings = examine(paths)
    assert {finding.card for finding in findings} == {"x/v1", "y/v1"}
    assert [finding.card for finding in findings if finding.need == "card"] == ["y/v1"]


@pytest.mark.parametrize("broken", [False, True], ids=["whole", "broken"])
def test_a_name_of_two_cards_gives_weights_to_neither(broken: bool, tmp_path: Path) -> None:
    paths = namesakes(tmp_path)
    if broken:
        paths[0].write_text("---\nsdbench: no\n---\n", encoding="utf-8")
    workspace, names = Workspace(tmp_path / "store", None, "cpu", None), "x/v1/README.md, .*y/v1/README.md"
    with pytest.raises(CardError, match=rf"the name of 2 cards: .*{names}.*'v1'.*Give the file of one"):
        plan(paths, workspace, weights={"v1": tmp_path}, timing=False)
    with pytest.raises(CardError, match=r"no card of this run.*'v2'.*Name x/v1, y/v1"):
        plan(paths, workspace, weights={"v2": tmp_path}, timing=False)
    for key in ("x/v1", str(paths[0])):
        found = plan(paths, workspace, weights={key: tmp_path}, timing=False)
        assert list(dict.fromkeys(row.card for row in found.rows)) == ["x/v1", "y/v1"]


def test_the_figures_of_a_plan_do_not_tell_whose_home_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    about = {"protocol": "scenes-quick", "checkpoint": str(tmp_path / "nowhere")}
    cards = [make_card(tmp_path / place, **about) for place in ("v1.md", "v1/README.md")]
    for weights in ({}, {str(path): tmp_path / "weights" for path in cards}):
        made = plan(cards, Workspace(tmp_path / "store"), weights=weights, timing=False)
        told = json.dumps(figures(made))
        assert "~/v1/README.md" in told
        assert str(tmp_path) not in told


def test_results_that_cannot_be_shown_are_told_and_end_in_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"node_id": "a", "card": "a", "test": "compute", "measured": 2e9, "verdict": "pass"},
        {"node_id": "b", "card": FORGED, "test": "quality", "measured": "many", "verdict": HIDDEN},
    ]
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"schema_version": 1, "environment": {}, "results": rows}))
    assert main(["table", str(namesakes(tmp_path)[0]), "--results", str(results)]) == 1
    told = capsys.readouterr()
    assert "2.0 G" in told.out
    assert "cannot be shown" in told.out
    assert "<script>" not in told.out.replace("\\<script>", "")
    assert all(char.isprintable() or char == "\n" for char in told.out + told.err)
