"""Scores of another tool: matched with their images, or refused with the line; then judged like others."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_sdbench.base.errors import DataError, SdbenchError
from pytest_sdbench.base.files import TEMPORARY
from pytest_sdbench.cards.card import read_card
from pytest_sdbench.commands import import_scores
from pytest_sdbench.commands.import_file import Value, read_values
from pytest_sdbench.commands.import_scores import by_image
from pytest_sdbench.commands.main import main, parser
from pytest_sdbench.metrics.imported import imported_metric
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.prompts import load_prompts
from pytest_sdbench.store.folders import LocalFolder, RemoteFolder
from pytest_sdbench.store.shard_folder import in_grid
from pytest_sdbench.store.shards import Evidence, Store
from tests.project import make_card, make_project, make_protocol

GENEVAL = imported_metric("geneval", "GenEval", higher_is_better=True, minimum=0, maximum=1)
DECLARED = {"kind": "imported", "label": "GenEval", "higher_is_better": True, "minimum": 0, "maximum": 1}
PROMPTS = ["a cat", "a dog", "a cat", "two owls, one hat"]
SEEDS = [11, 22, 33, 44]
N = 70


@pytest.fixture(autouse=True)
def _metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what the protocols of a test declare."""
    monkeypatch.setattr(METRICS, "_loaded", dict(METRICS._loaded))


def scores(folder: Path, text: str, name: str = "scores.jsonl") -> list[float]:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    values = list(read_values(path, GENEVAL))
    return [float(each) for each in by_image(path, values, PROMPTS, SEEDS)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("s.jsonl", '{"index": 1, "value": false}\n{"index": 0, "value": 0.25}\n\n'
                    '{"index": 3, "value": true}\n{"index": 2, "value": 0.5}'),
        ("s.csv", "index,value\n0,0.25\n1,0\n2,0.5\n3,1\n"),
        ("s.csv", "\n , \nsep,index,value\nx,0,0.25\n,1,0\nx,2,0.5\nx,3,1\n"),
        ("s.csv", "sep=,\r\nindex,value\r\n0,0.25\r\n1,0\r\n2,0.5\r\n3,1\r\n"),
        ("s.csv", "index,value,why\n0,0.25," + "x" * 2**18 + "\n1,0,\n2,0.5,\n3,1,\n"),
        ("s.csv", 'value, prompt, seed\n0.25, "a cat", 11\n0, "a dog", 22\n.5, "a cat", 33\n'
                  '1, "two owls, one hat", 44\n'),
        ("s.csv", "file_name,value\n00000000,0.25\n00000001,0\nout/00000002,0.5\n00000003,1\n"),
        ("s.jsonl", "\n".join(json.dumps({"__key__": f"{place:08d}", "value": value})
                              for place, value in enumerate((0.25, 0, 0.5, 1)))),
        ("s.csv", "index,value,,\n0,0.25,,\n1,0,,\n2,0.5,,\n3,1,,\n"),
        ("s.csv", "index,value\n0,0.25\n1,False\n2,0.5\n3,true\n"),
        ("s.csv", "\ufeffprompt,seed,score,model\r\na cat,33,0.5,x\r\na cat,11,.25,x\r\na dog,,0,x\r\n"
                  '"two owls, one  hat",44,1,x\r\n'),
        ("s.jsonl", "\n".join(json.dumps({"text": text, "seed": seed, "geneval": value})
                              for text, seed, value in zip(PROMPTS, SEEDS, (0.25, 0, 0.5, 1), strict=True))),
    ],
)  # fmt: skip
def test_every_value_finds_its_image(tmp_path: Path, name: str, text: str) -> None:
    assert scores(tmp_path, text, name) == [0.25, 0, 0.5, 1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"index": 0, "value": 1.5}, "at least 0 and at most 1"),
        ({"index": 0, "value": float("nan")}, "not a value of GenEval"),
        ({"index": 0, "value": "good"}, "not a number"),
        ({"index": 0}, "no value"),
        ({"index": 0, "value": 1, "score": 1}, "several values"),
        ({"value": 1}, "neither index nor prompt"),
        ({"index": 1.5, "value": 1}, "not a whole number"),
        ({"index": 4, "value": 1}, "the protocol has 4 images"),
        ({"index": -1, "value": 1}, "the protocol has 4 images"),
        ({"prompt": "a fox", "value": 1}, "no prompt of the protocol"),
        ({"prompt": "a cat", "value": 1}, "2 images are of this prompt"),
        ({"prompt": "a cat", "seed": 12, "value": 1}, "the seed"),
        ({"prompt": "a dog", "seed": 23, "value": 1}, "the seed 22"),
        ({"index": 1, "prompt": "a cat", "value": 1}, "another prompt"),
        ({"index": 1, "file_name": "samples/00000002.png", "value": 1}, "the file of another image"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path: Path, line: object, words: str) -> None:
    with pytest.raises(DataError, match="line 1") as refused:
        scores(tmp_path, json.dumps(line))
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("s.csv", "index,value\n0,1\n1\n", "line 3"),
        ("s.csv", "index,value\n0,1,2\n", "line 2"),
        ("s.csv", "index,value,value\n0,1,2\n", "line 1: .*two columns have one name .*value"),
        ("s.jsonl", '{"index": 0, "value": NaN}', "line 1: not a value.*Give each image a number"),
        ("s.jsonl", "", "no value of 4 images"),
        ("s.jsonl", '{"index": 0, "value": 1}', "no value of 3 images, the first of them image 1"),
        ("s.jsonl", '{"index": 0, "value": 1}\n' * 2, "a second value of image 0"),
        ("s.jsonl", '{"index": 0, "value": 1', "line 1: this line is no JSON object"),
        ("s.json", json.dumps({"a.png": 1, "b.png": 0}, indent=1), r"^[^:]*: one JSON object.*'a\.png'"),
        ("s.json", json.dumps({"index": 0, "value": 1}, indent=1) * 2, "line 1: this line is no JSON object"),
        ("s.jsonl", '{"index": 0, "value": 0, "value": 1}', "line 1: .*the key 'value' stands twice"),
        ("s.jsonl", '{"index": 1, "value": 1, "index": 0}', "line 1: .*the key 'index' stands twice"),
    ],
)
def test_a_file_that_is_wrong_is_explained(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        scores(tmp_path, text, name)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"higher_is_better": None}, "higher_is_better"),
        ({"maximun": 0}, "Did you mean 'maximum'"),
        ({"minimum": float("inf")}, "minimum"),
    ],
)
def test_a_declaration_that_is_wrong_is_named(tmp_path: Path, spec: dict[str, object], words: str) -> None:
    path = make_protocol(tmp_path / "mini.yaml", metrics={"geneval": DECLARED | spec}, margins={})
    with pytest.raises(SdbenchError, match=r"metrics\.geneval") as refused:
        load_protocol(path)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vqa", r"no such metric .*imported metrics are geneval\. Declare it: metrics: \{vqa: "),
        ("clip_score", r"CLIP score is computed.* under another name: metrics: \{their_clip_score: "),
        ("fid", r"FID is computed.* under another name: metrics: \{their_fid: "),
    ],
)
def test_a_metric_that_is_not_imported_is_told_what_can_be_done(
    name: str, words: str, tmp_path: Path, pristine_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = make_project(tmp_path, pristine_checkpoint)
    metrics = {"clip_score": {"model": "local:scenes-clip"}, "geneval": DECLARED}
    make_protocol(card.parent / "protocols/mini.yaml", metrics=metrics, margins={})
    assert main(["import", "none.jsonl", "--metric", name, "--protocol", "mini", "--card", str(card)]) == 2
    assert re.search(words, capsys.readouterr().err)


def test_images_that_were_not_made_are_told_the_command_that_makes_them(
    tmp_path: Path, pristine_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = make_project(tmp_path, pristine_checkpoint)
    make_protocol(card.parent / "protocols/mini.yaml", n=N, metrics={"geneval": DECLARED}, margins={})
    (tmp_path / "scores.csv").write_text("index,value\n0,1\n", encoding="utf-8")
    weights = ["--weights", f"mini={card.parent / 'mini-sd'}", "--store", str(tmp_path / "a store")]
    command = ["import", str(tmp_path / "scores.csv"), "--metric", "geneval", "--protocol", "mini"]
    assert main([*command, "--card", str(card), *weights, "--images", "4", "--device", "cpu"]) == 2
    told = shlex.split(capsys.readouterr().err.partition("To make them: python -m pytest_sdbench ")[2])
    options = parser("images").parse_args(told)
    assert (options.card, options.protocol, options.images) == (str(card), "mini", 4)
    assert (options.store, options.device) == (str(tmp_path / "a store"), "cpu")
    assert options.weights == [("mini", str(card.parent / "mini-sd"))]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_file_is_named_as_one(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / "s.jsonl.gz").write_bytes(pack(b'{"index": 0, "value": 1}'))
    with pytest.raises(DataError, match=r"this file is compressed.*Unpack it"):
        list(read_values(tmp_path / "s.jsonl.gz", imported_metric("any", "Any", higher_is_better=True)))


def test_a_value_that_a_column_cannot_hold_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("index,value\n0,1e39\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"line 2: not a value of Any \(found '1e39'\)\. Give each image"):
        list(read_values(tmp_path / "s.csv", imported_metric("any", "Any", higher_is_better=True)))


def test_a_prompt_is_the_same_however_its_accents_are_written(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("prompt,value\ncafe\u0301,1\n", encoding="utf-8")
    assert by_image(path, list(read_values(path, GENEVAL)), ["caf\u00e9"], [1]).tolist() == [1]


def test_a_seed_that_all_images_have_tells_none_apart(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text('{"prompt": "a cat", "seed": 11, "value": 1}')
    with pytest.raises(DataError, match=r"2 images are of this prompt.*Say which: `index`$"):
        by_image(path, list(read_values(path, GENEVAL)), PROMPTS, [11] * 4)


def test_two_protocols_declare_a_metric_alike_or_not_at_all(tmp_path: Path) -> None:
    for name in ("one", "two"):
        load_protocol(make_protocol(tmp_path / f"{name}.yaml", metrics={"geneval": DECLARED}, margins={}))
    other = make_protocol(tmp_path / "three.yaml", metrics={"geneval": DECLARED | {"maximum": 2}}, margins={})
    with pytest.raises(SdbenchError, match="another metric elsewhere"):
        load_protocol(other)


COLUMN = "imported-geneval"
COLUMNS = {COLUMN: "imported:geneval@1/value"}


def kept(root: Path, values: np.ndarray) -> None:
    """Keep the values of the images in a store in which they were drawn."""
    evidence = Store(root).open("c" * 16, "d" * 16, {"device": "a device"}, COLUMNS)
    flags = [{"seed": np.array(images, np.int64)} for images in in_grid(len(values))]
    import_scores._keep(evidence, COLUMN, flags, values)


def known(root: Path, n: int) -> set[float] | None:
    """Return the values of the first n images that a reader finds; None where it finds that some lack."""
    evidence = Store(root).open("c" * 16, "d" * 16, {"device": "a device"}, COLUMNS)
    if evidence.missing(n):
        return None
    return {value for rows in evidence.read(n) for value in rows[COLUMN].tolist()}


@pytest.mark.parametrize("place", ["a folder", "memory://imported"])
@pytest.mark.parametrize("n", [100, 200, 264])
@pytest.mark.parametrize("cut", range(9))
def test_old_and_new_values_are_never_found_side_by_side(
    n: int, cut: int, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path if place == "a folder" else f"{place}-{n}-{cut}"
    kept(root, np.zeros(200, np.float32))
    steps = iter(range(cut))

    def cut_short(method: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            if next(steps, None) is None:
                raise KeyboardInterrupt
            found = method(*arguments, **named)
            for count in (64, 100, 200, 264):  # whoever reads now
                assert known(root, count) in (None, {0}, {1})
            return found

        return step

    with monkeypatch.context() as patch:
        patch.setattr(Evidence, "write", cut_short(Evidence.write))
        for storage in (LocalFolder, RemoteFolder):
            patch.setattr(storage, "remove", cut_short(storage.remove))
        with contextlib.suppress(KeyboardInterrupt):
            kept(root, np.ones(n, np.float32))
    kept(root, np.ones(n, np.float32))
    assert known(root, n) == {1}
    assert known(root, 264) == ({1} if n == 264 else None)


def test_the_same_values_stay_where_they_are_while_they_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(tmp_path, np.zeros(200, np.float32))
    removed, remove = list[str](), LocalFolder.remove

    def noted(folder: LocalFolder, name: str) -> None:
        removed.append(name)
        remove(folder, name)

    monkeypatch.setattr(LocalFolder, "remove", noted)
    kept(tmp_path, np.zeros(200, np.float32))
    # Another import may have written them; a trial of the store is nobody's.
    assert [name for name in removed if not name.startswith(TEMPORARY)] == []


@pytest.mark.slow
def test_imported_scores_are_judged_like_all_others(
    pytester: pytest.Pytester,
    pristine_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    make_project(pytester.path, pristine_checkpoint)
    cards = pytester.path / "cards"
    kept = {"clip_score": {"model": "local:scenes-clip"}, "geneval": DECLARED}
    margins = {"clip_score": 0.2, "geneval": 0.2}
    protocol = load_protocol(make_protocol(cards / "protocols/mini.yaml", n=N, metrics=kept, margins=margins))
    make_card(cards / "mini.md", claims={"GenEval": 0.9, "clip_score": 0.99})
    command = ["import", "scores.jsonl", "--metric", "geneval", "--protocol", "mini", "--card", "mini"]

    def judged() -> dict[str, str]:
        pytester.runpytest("--sdbench", "cards/mini.md", "-m", "quality", "--sdbench-report=r.json")
        rows = json.loads(Path("r.json").read_text(encoding="utf-8"))["results"]
        return {
            row["node_id"].partition("[mini-")[2][:-1]: f"{row['verdict']} {row['reason']}" for row in rows
        }

    before = judged()
    assert before["geneval"].startswith("unavailable")
    assert "import SCORES" in before["geneval"]
    assert before["clip_score"].startswith("fail")
    prompts = load_prompts(protocol)

    def give(*values: int) -> None:
        lines = [{"index": i, "prompt": prompts[i], "value": value} for i, value in enumerate(values)]
        Path("scores.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")

    assert main(["plan", "cards/mini.md", "--no-timing"]) == 1
    give(*(1 for _ in range(66)))
    assert main([*command, "--images", "66"]) == 0
    give(*(int(i % 10 > 0) for i in range(N)))  # nine of ten images are right
    assert main(command) == 2, "of the first 66 other values are known"
    assert "7 other values of GenEval were imported before" in capsys.readouterr().err
    assert main([*command, "--replace"]) == 0
    assert main(command) == 0
    assert main(["plan", "cards/mini.md", "--no-timing"]) == 0  # nothing lacks any more
    assert judged()["geneval"].startswith("pass")
    give(*(int(i % 10 > 0) for i in range(69)))
    assert main([*command, "--images", "69"]) == 0  # the same values: the others stay
    assert judged()["geneval"].startswith("pass")
    give(*(i % 2 for i in range(N)))
    assert main(command) == 2
    assert main([*command, "--replace"]) == 0
    assert judged()["geneval"].startswith("fail")
    keep = import_scores._keep

    def beside(evidence: Evidence, column: str, flags: Any, values: Any) -> None:
        """Import, while another process imports other values."""
        keep(evidence, column, flags, values)
        evidence.write(0, {**(evidence.flags(range(64)) or {}), column: 1 - values[:64]})

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(import_scores.np, "arange", interrupt)  # before the first value is written
        capsys.readouterr()
        give(*(1 for _ in range(N)))
        assert main([*command, "--replace"]) == 130
    assert "values may be missing from the store now, and the same command goes on" in capsys.readouterr().err
    assert judged()["geneval"].startswith("unavailable")
    give(*(i % 2 for i in range(N)))
    with monkeypatch.context() as patch:
        patch.setattr(import_scores, "_keep", beside)
        assert main([*command, "--replace"]) == 2
    assert main([*command, "--replace"]) == 0
    assert main([*command, "--replace", "--images", "69"]) == 0  # the file has one more: it is passed over
    # Old values of the images beyond the first ones do not stay beside the new ones.
    assert judged()["geneval"].startswith("unavailable")
    give(*(1 for _ in range(69)))
    assert main([*command, "--replace", "--images", "69"]) == 0
    assert judged()["geneval"].startswith("unavailable")


def test_the_mean_has_the_standard_error_of_its_prompts() -> None:
    from pytest_sdbench.metrics.definition import NoOptions, Sample
    from pytest_sdbench.metrics.estimates import Estimate

    values = np.array([0, 1, 1, 0, 1, 1, 1, 0], np.float32)
    found = GENEVAL.estimate(Sample([values], 8), None, NoOptions())
    assert isinstance(found, Estimate)
    assert found.value == 0.625
    # A share: as if two images were otherwise, so that one of 1 is not certain.
    besides = 2**0.5 / 8
    assert found.standard_error == pytest.approx(math.hypot(values.std(ddof=1) / 8**0.5, besides))
    certain = GENEVAL.estimate(Sample([np.ones(8, np.float32)], 8), None, NoOptions())
    assert isinstance(certain, Estimate)
    assert certain.standard_error == pytest.approx(besides)
    unbounded = imported_metric("votes", "Votes", higher_is_better=True)
    votes = unbounded.estimate(Sample([np.ones(8, np.float32)], 8), None, NoOptions())
    assert isinstance(votes, Estimate)
    assert votes.standard_error == pytest.approx(besides)
    same = unbounded.estimate(Sample([np.full(8, 3, np.float32)], 8), None, NoOptions())
    assert isinstance(same, Estimate)
    assert same.standard_error is None
    graded = GENEVAL.estimate(Sample([values * 0.5], 8), None, NoOptions())
    assert isinstance(graded, Estimate)
    assert graded.standard_error == pytest.approx(0.5 * values.std(ddof=1) / 8**0.5)


def test_a_margin_of_per_cent_is_refused_beside_a_share(tmp_path: Path) -> None:
    make_protocol(tmp_path / "protocols/mini.yaml", metrics={"geneval": DECLARED}, margins={})
    with pytest.raises(SdbenchError, match="would pass nearly anything"):
        read_card(make_card(tmp_path / "mini.md", claims={"geneval": 0.62}, margins={"geneval": 2}))


def test_a_json_list_and_the_names_of_pictures_are_read_whatever_the_file_is_called(tmp_path: Path) -> None:
    rows = [
        {"file_name": f"out/{index:08d}.png", "value": value} for index, value in enumerate((0.25, 0, 0.5, 1))
    ]
    told = "".join(f"{json.dumps(row)}\n" for row in rows)
    table = "filename,value\n" + "".join(f"{row['file_name']},{row['value']}\n" for row in rows) + ",\n,\n"
    for name, text in (("s.json", json.dumps(rows, indent=1)), ("s.JSONL", told), ("s.txt", told)):
        assert scores(tmp_path, text, name) == [0.25, 0, 0.5, 1]
    assert scores(tmp_path, table, "s.csv") == [0.25, 0, 0.5, 1]
    with pytest.raises(DataError, match=r"not an object.*1.5|\[1\]"):
        scores(tmp_path, json.dumps([rows[0], 1.5]), "s.json")


@pytest.mark.parametrize(("sign", "told"), [(";", "semicolons"), ("\t", "tabs")])
def test_a_table_with_another_separator_is_told_so(tmp_path: Path, sign: str, told: str) -> None:
    with pytest.raises(DataError, match=f"by {told} in this file"):
        scores(tmp_path, f"index{sign}value\n0{sign}1\n", "s.csv")


def test_values_beyond_the_images_at_hand_are_passed_over() -> None:
    values = [Value(f"line {index + 1}", index / 4, index=index) for index in range(4)]
    assert by_image(Path("s"), values, PROMPTS, SEEDS[:2]).tolist() == [0, 0.25]
    beyond = [*values, Value("line 5", 1.0, index=4)]
    with pytest.raises(DataError, match="line 5: the protocol has 4 images"):
        by_image(Path("s"), beyond, PROMPTS, SEEDS[:2])
