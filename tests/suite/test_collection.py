"""Which files are cards, what a card becomes, and what a broken card does."""

from __future__ import annotations

import json
import re

import pytest

from tests.project import make_card, make_protocol
from tests.report.test_report import FORGED, HIDDEN

COLLECT = ("--sdbench", "--collect-only", "-q", "-p", "no:cacheprovider")


def collected(result: pytest.RunResult) -> list[str]:
    return [line for line in result.outlines if "::" in line and not line.startswith(("FAILED", "ERROR"))]


@pytest.fixture
def card(pytester: pytest.Pytester):
    make_protocol(pytester.path / "cards" / "protocols" / "mini.yaml")
    return make_card(
        pytester.path / "cards" / "mini.md",
        claims={"fid": 20.0, "clip_score": 0.25},
        architecture="bk-sdm-tiny",
        checkpoint="nobody/nothing",
    )


def test_a_card_becomes_one_test_per_claim(pytester, card):
    ids = collected(pytester.runpytest(*COLLECT, "cards/mini.md"))
    names = [item.partition("::")[2] for item in ids]
    assert names == [
        "test_size[unet]",
        "test_size[text_encoder]",
        "test_size[image_decoder]",
        "test_size[whole]",
        "test_compute",
        "test_speed",
        "test_memory",
        "test_quality[mini-fid]",
        "test_quality[mini-clip_score]",
        # The card names the protocol, so what it has no claim about yet is measured as well.
        "test_quality[mini-inception_score]",
        "test_quality[mini-kid]",
    ]
    assert {item.partition("::")[0] for item in ids} == {"cards/mini.md"}


@pytest.mark.parametrize("setting", ["cards/mini.md", "cards", "cards/*.md"])
def test_without_a_path_the_ini_names_the_cards(pytester, card, setting):
    pytester.makeini(f"[pytest]\ntestpaths = nowhere\nsdbench_cards = {setting}\n")
    assert {item.partition("::")[0] for item in collected(pytester.runpytest(*COLLECT))} == {"cards/mini.md"}


def test_a_pattern_that_matches_nothing_is_an_error(pytester):
    pytester.makeini("[pytest]\nsdbench_cards = card/*.md\n")
    result = pytester.runpytest(*COLLECT)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "sdbench_cards: nothing matches 'card/*.md'" in result.stderr.str()


def test_a_pattern_takes_cards_alone_and_a_folder_may_have_brackets(pytester, card, monkeypatch):
    (card.parent / "README.md").write_text("# How these cards are kept\n", encoding="utf-8")
    (card.parent / "prompts.csv").touch()
    project = pytester.path / "pr[1]"
    project.mkdir()
    card.parent.rename(project / "cards")
    (project / "pytest.ini").write_text("[pytest]\nsdbench_cards = cards/*\n", encoding="utf-8")
    monkeypatch.chdir(project)
    assert {item.partition("::")[0] for item in collected(pytester.runpytest(*COLLECT))} == {"cards/mini.md"}


def test_a_card_without_protocols_is_no_empty_set_of_parameters(pytester, card):
    pytester.makeini("[pytest]\nempty_parameter_set_mark = fail_at_collect\n")
    make_card(card, claims={}, protocols=[])
    names = [item.partition("::")[2] for item in collected(pytester.runpytest(*COLLECT, "cards/mini.md"))]
    assert "test_compute" in names
    assert "card" not in names


def test_a_walk_takes_cards_and_python_tests_but_no_other_markdown(pytester, card, request):
    pytester.makepyfile("def test_of_the_project(): pass")
    pytester.makefile(".md", README="# A readme", notes="---\ntitle: Notes\n---\n")
    files = {item.partition("::")[0] for item in collected(pytester.runpytest(*COLLECT, "."))}
    assert files == {"cards/mini.md", f"{request.node.name}.py"}


def test_a_named_file_is_a_card_whatever_is_in_it(pytester):
    pytester.makefile(".md", README="# A readme without front matter")
    result = pytester.runpytest("--sdbench", "README.md")
    result.assert_outcomes(failed=1)
    assert "README.md" in result.stdout.str()
    assert "front matter" in result.stdout.str()


@pytest.mark.parametrize("protocol", [None, "n: [", "n: 0\n", "title: Nothing else\n"])
def test_a_broken_card_or_protocol_is_one_failing_item_and_the_others_still_run(pytester, card, protocol):
    if protocol is None:
        make_card(card.with_name("wrong.md"), margins={"clip_scor": 0.1})
        told = ["wrong.md", "sdbench.margins.clip_scor", "unknown metric", "Did you mean 'clip_score'"]
    else:
        make_protocol(card.parent / "protocols" / "bad.yaml").write_text(protocol)
        about = {"architecture": "bk-sdm-tiny", "checkpoint": "nobody/nothing"}
        make_card(card.with_name("wrong.md"), protocol="bad", **about)
        told = ["bad.yaml"]
    result = pytester.runpytest("--sdbench", "cards", "-m", "memory")
    assert result.parseoutcomes()["failed"] == 1
    assert result.parseoutcomes()["skipped"] == 1  # mini.md's: nothing is claimed of it
    text = result.stdout.str()
    assert [part for part in told if part not in text] == []
    assert "Traceback" not in text


def test_keywords_and_markers_select_claims(pytester, card):
    assert collected(pytester.runpytest(*COLLECT, "cards", "-k", "fid")) == [
        "cards/mini.md::test_quality[mini-fid]"
    ]
    sizes = collected(pytester.runpytest(*COLLECT, "cards", "-m", "size"))
    assert len(sizes) == 4
    assert all("test_size" in item for item in sizes)
    one = "cards/mini.md::test_size[unet]"
    assert collected(pytester.runpytest(*COLLECT, one)) == [one]
    assert one not in collected(pytester.runpytest(*COLLECT, "cards", "--deselect", one))


def test_markers_are_registered(pytester, card):
    result = pytester.runpytest("--sdbench", "--strict-markers", "--markers")
    result.stdout.fnmatch_lines(
        [f"@pytest.mark.{name}: *" for name in ("size", "compute", "speed", "memory", "quality")]
    )


def test_project_settings_for_python_functions_do_not_hide_the_suite(pytester, card):
    pytester.makeini("[pytest]\npython_functions = check_*\n")
    assert len(collected(pytester.runpytest(*COLLECT, "cards"))) == 11


def test_header_says_where_the_run_looks(pytester, card):
    result = pytester.runpytest("--sdbench", "--collect-only", "cards", "--sdbench-samples", "8")
    result.stdout.fnmatch_lines(
        ["sdbench: device auto, *store .sdbench*data none*download off*8 images only*"]
    )


def test_selecting_by_keyword_never_hides_a_broken_card(pytester, card):
    make_card(card.with_name("wrong.md"), architecture="of-nobody")
    # Front matter that is never closed is a broken card in a walk.
    text = card.read_text(encoding="utf-8")
    card.with_name("open.md").write_text(text[: text.rindex("---")], encoding="utf-8")
    for words in ([], ["-k", "fid"], ["-k", "clip_score"], ["-k", "test_size"], ["-k", "unet"]):
        ids = collected(pytester.runpytest(*COLLECT, "cards", *words))
        assert {"cards/wrong.md::card", "cards/open.md::card"} <= set(ids)


SELECTIONS = [
    ["-m", "size and not speed"],
    ["-m", "not quality and not memory"],
    ["-k", "not fid"],
    ["-k", "no_such_word"],
    ["-m", "size", "-k", "unet and not recorded"],
    ["-k", "mini"],
]


@pytest.mark.parametrize("words", SELECTIONS, ids=" ".join)
def test_no_selection_leaves_out_what_cannot_be(pytester, card, words):
    make_card(card.with_name("wrong.md"), architecture="of-nobody")
    make_card(card.with_name("figures.md"), claims={"fid": 0.0, "clip_score": 29.58})
    ids = collected(pytester.runpytest(*COLLECT, "cards", *words))
    figures = {f"cards/figures.md::test_quality[mini-{metric}]" for metric in ("fid", "clip_score")}
    assert {"cards/wrong.md::card", *figures} <= set(ids)


def test_one_odd_entry_is_an_item_of_its_own_and_the_rest_of_the_card_is_tested(pytester, tiny_checkpoint):
    readme = tiny_checkpoint / "README.md"
    figures = [
        "fid, value: null",
        "clip_score, value: 29.58",
        "wer, value: 1e-05",
        "inception_score, value: 3.0",
    ]
    metrics = "".join(f"    - {{type: {figure}}}\n" for figure in figures)
    result = (
        f"  - task: {{type: t}}\n    dataset: {{type: a, name: A, args: {{x: 1}}}}\n    metrics:\n{metrics}"
    )
    readme.write_text(f"---\nmodel-index:\n- name: M\n  results:\n{result}---\n# M\n", encoding="utf-8")
    found = pytester.runpytest(
        "--sdbench", str(readme), "-m", "size or quality", "-rA", "--sdbench-report=r.json"
    )
    found.assert_outcomes(failed=1, skipped=7)
    rows = {row["name"]: row for row in json.loads((pytester.path / "r.json").read_text())["results"]}
    assert rows["unet"]["measured"] > 0
    at = "model-index[0].results[0].metrics"
    told = {
        "unstated-clip_score": ("error", f"{at}[1].value", "torchmetrics has it; write 0.2958"),
        "unstated-fid": ("mismatch", f"{at}[0].value", "the FID is null"),
        f"{at}[2].type": ("mismatch", f"{at}[2].type", "'wer'"),
        "unstated-inception_score": ("mismatch", "", "does not state the protocol"),
    }
    for name, (verdict, *words) in told.items():
        assert rows[name]["verdict"] == verdict
        assert [word for word in words if word not in rows[name]["reason"]] == []


def test_a_broken_card_fails_as_the_test_of_it_that_was_named(pytester, card):
    make_card(card.with_name("wrong.md"), architecture="of-nobody")
    result = pytester.runpytest(
        "--sdbench", "cards/wrong.md::test_quality[mini-fid]", "-p", "no:cacheprovider"
    )
    result.assert_outcomes(failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "cards/wrong.md" in result.stdout.str()


HOSTILE = {
    "complex keys": "? [a, b]\n: 1\nsdbench: {}",
    "a key that is no text": "? {a: 1}\n: 1\nsdbench: {protocols: [mini]}",
    "nesting": "sdbench: " + "[" * 3000 + "]" * 3000,
    "an integer of 400 digits": f"sdbench: {{size: {{unet: {{exact: {'9' * 400}}}}}}}",
    "no bool": "sdbench: !!bool maybe",
    "month 13": "sdbench: {records: [{date: 2026-13-01}]}",
    "a timestamp out of range": "sdbench: {records: 9999-99-99 99:99:99}",
    "infinity": "sdbench: {compute: {unet_macs: .inf}}",
    "an alias of itself": "sdbench: &all {protocols: [*all]}",
    "a tag of Python": "sdbench: !!python/object/apply:os.system [exit]",
    "a set": "sdbench: !!set {a, b}",
    "bytes": "sdbench: !!binary aGFsbG8=",
}


def test_whatever_stands_in_a_card_the_others_are_collected(pytester, card):
    for number, text in enumerate(HOSTILE.values()):
        card.with_name(f"hostile{number}.md").write_text(f"---\n{text}\n---\n# Hostile\n", encoding="utf-8")
    result = pytester.runpytest("--sdbench", "cards", "-m", "compute", "-p", "no:cacheprovider", "-rA")
    # A key that is no text is the hub's business: such a card is read, and lacks a checkpoint as `mini` does.
    read = [f"hostile{number}.md" for number, kind in enumerate(HOSTILE) if kind == "complex keys"]
    result.assert_outcomes(failed=len(HOSTILE) - len(read), skipped=1 + len(read))
    for number in range(len(HOSTILE)):
        if f"hostile{number}.md" not in read:
            result.stdout.fnmatch_lines([f"FAILED cards/hostile{number}.md::card*"])


def test_a_count_and_names_of_others_end_no_run_and_forge_no_report(pytester):
    said = f"{FORGED}{HIDDEN}"
    path = pytester.path / "cards" / "e\x1b[31m\u202evil\nx.md"
    make_card(path, claims={}, title=said, protocols=[], architecture="bk-sdm-tiny", checkpoint=None)
    text = path.read_text(encoding="utf-8")
    text = text.replace("sdbench:\n", "sdbench:\n  size: {unet: {exact: 323384964, published: 0x13468D04}}\n")
    figures = f"[{{type: fid, value: {json.dumps(said)}}}, {{type: {json.dumps(said)}, value: 1}}]"
    result = f"{{task: {{type: t}}, dataset: {{type: a, name: {json.dumps(said)}}}, metrics: {figures}}}"
    index = f"model-index: [{{name: {json.dumps(said)}, results: [{result}]}}]\n"
    path.write_text(text.replace("sdbench:\n", f"{index}sdbench:\n", 1), encoding="utf-8")
    reports = ("--sdbench-report=r.md", "--sdbench-report=r.json", "--junitxml=r.xml")
    result = pytester.runpytest("--sdbench", "cards", "-m", "size or quality", "-v", "-rA", *reports)
    result.assert_outcomes(passed=1, failed=1, skipped=4)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    report = (pytester.path / "r.md").read_text(encoding="utf-8")
    assert "0x13468D04" in report
    for text in (report, result.stdout.str(), result.stderr.str(), (pytester.path / "r.xml").read_text()):
        assert {char for char in text if not char.isprintable()} <= {"\n"}
    assert not re.search(r"(?<!\\)<script", report)
    assert not [line for line in report.splitlines() if line.startswith("# Passed")]


@pytest.mark.parametrize("name", ["CARD.MD", "Readme.Md"])
def test_a_named_file_is_a_card_however_its_ending_is_spelled(pytester, card, name):
    named = card.with_name(name)
    named.write_text(card.read_text(encoding="utf-8"), encoding="utf-8")
    assert len(collected(pytester.runpytest(*COLLECT, f"cards/{name}", "-m", "size"))) == 4


def test_a_tilde_in_a_name_is_a_sign_like_any_other(pytester):
    names = ["~x.md", "~/y.md", "~root/z.md", "~nobody/README.md"]
    for name in names:
        block = {"architecture": "bk-sdm-tiny", "checkpoint": None, "protocols": []}
        make_card(pytester.path / name, claims={}, title=f"Title of {name}", **block)
    result = pytester.runpytest("--sdbench", ".", "-m", "compute", "--sdbench-report=r.md")
    result.assert_outcomes(skipped=4)
    table = (pytester.path / "r.md").read_text(encoding="utf-8").replace("\\", "")
    assert [name for name in names if f"Title of {name}" not in table] == []


def test_weights_of_a_broken_card_are_those_of_a_card_of_the_run(pytester, card, tiny_checkpoint):
    make_card(card.with_name("wrong.md"), architecture="of-nobody")
    for key in ("wrong", "cards/wrong.md"):
        words = ("--sdbench", "cards", "-m", "memory", f"--sdbench-weights={key}={tiny_checkpoint}")
        result = pytester.runpytest(*words)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        assert "unknown architecture" in result.stdout.str()
        assert "none of the cards" not in result.stderr.str() + result.stdout.str()


def namesakes(pytester):
    """Write two cards of one name, of networks that differ."""
    for place, network in (("x/v1", "bk-sdm-tiny"), ("y/v1", "bk-sdm-small")):
        block = {"architecture": network, "checkpoint": None, "protocols": []}
        make_card(pytester.path / place / "README.md", claims={}, **block)


def test_namesakes_are_cards_of_their_own(pytester):
    namesakes(pytester)
    words = ("--sdbench", "x", "y", "-m", "compute", "--sdbench-report=r.json", "--sdbench-report=r.md")
    pytester.runpytest(*words).stdout.fnmatch_lines(["*  x/v1 *", "*  y/v1 *"])
    results = json.loads((pytester.path / "r.json").read_text(encoding="utf-8"))["results"]
    measured = {row["card"]: row["measured"] for row in results}
    assert set(measured) == {"x/v1", "y/v1"}
    assert measured["x/v1"] < measured["y/v1"]
    table = (pytester.path / "r.md").read_text(encoding="utf-8")
    assert "x/v1" in table
    assert "y/v1" in table


def test_a_name_of_several_cards_replaces_the_checkpoint_of_none(pytester, tiny_checkpoint):
    namesakes(pytester)
    given = ("--sdbench", "x", "y", "-m", "size")
    result = pytester.runpytest(*given, f"--sdbench-weights=v1={tiny_checkpoint}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "'v1' is the name of 2 cards: x/v1/README.md, y/v1/README.md" in result.stderr.str()
    for key in ("x/v1", "x/v1/README.md"):
        weights = f"--sdbench-weights={key}={tiny_checkpoint}"
        found = pytester.runpytest(*given, weights, "--sdbench-report=r.json")
        assert found.ret != pytest.ExitCode.USAGE_ERROR
        rows = json.loads((pytester.path / "r.json").read_text())["results"]
        assert {row["card"] for row in rows if row["measured"] is not None} >= {"x/v1"}
