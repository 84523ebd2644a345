"""Which files are cards, what a card becomes, and what a broken card does."""

from __future__ import annotations

import pytest

from tests.project import make_card, make_protocol

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
        make_card(card.with_name("wrong.md"), claims={"clip_score": 29.58}, protocol="scenes-quick")
        told = ["wrong.md", "model-index[0].results[0].metrics[0].value", "CLIP score", "29.58"]
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
    make_card(card.with_name("wrong.md"), claims={"fid": 0.0})
    # Front matter that is never closed is a broken card in a walk.
    text = card.read_text(encoding="utf-8")
    card.with_name("open.md").write_text(text[: text.rindex("---")], encoding="utf-8")
    for words in ([], ["-k", "fid"], ["-k", "clip_score"], ["-k", "test_size"], ["-k", "unet"]):
        ids = collected(pytester.runpytest(*COLLECT, "cards", *words))
        assert {"cards/wrong.md::card", "cards/open.md::card"} <= set(ids)
