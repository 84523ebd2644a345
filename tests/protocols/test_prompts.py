"""Prompts: the right ones, in order, or an error that says what is wrong with the file."""

from __future__ import annotations

import hashlib
import json
import re
from itertools import islice
from pathlib import Path

import pytest

from pytest_sdbench.base.errors import DataError, Unavailable
from pytest_sdbench.base.paths import reference
from pytest_sdbench.protocols import scenes
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.prompts import load_prompts, scenes_behind
from pytest_sdbench.protocols.protocol import Protocol

CAPTIONS = ["A dog, asleep.", 'He said "stop"', "Un café"]
GOOD = 'file_name,text\n1.jpg,"A dog, asleep."\n2.jpg,"He said ""stop"""\n3.jpg,Un café\n'


def protocol_of(tmp_path: Path, content: str | bytes | None, *, rows: int = 3, n: int = 3) -> Protocol:
    """Write a file of prompts and a protocol that expects exactly its bytes."""
    content = content.encode() if isinstance(content, str) else content
    if content is not None:
        (tmp_path / "captions.csv").write_bytes(content)
    protocol = {
        "title": "Own",
        "n": n,
        "prompts": {
            "kind": "csv",
            "file": "captions.csv",
            "sha256": hashlib.sha256(content or b"").hexdigest(),
            "rows": rows,
        },
        "seeds": {"kind": "per-image", "seed": 0},
        "sampling": {"steps": 2, "guidance": 1.0, "resolution": 64, "dtype": "float32"},
        "metrics": {"clip_score": {"model": "local:scenes-clip"}},
    }
    path = tmp_path / "own.yaml"
    path.write_text(json.dumps(protocol), encoding="utf-8")
    return load_protocol(path)


@pytest.mark.parametrize("n", [3, 2])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n"], ids=["unix", "windows", "blank"])
def test_prompts_are_the_first_of_the_file_in_its_order(tmp_path: Path, ending: str, n: int) -> None:
    protocol = protocol_of(tmp_path, GOOD.replace("\n", ending), n=n)
    assert load_prompts(protocol, tmp_path) == tuple(CAPTIONS[:n])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"captions\.csv: the file of prompts is empty"),
        (" \n\n", r"the file of prompts is empty"),
        ("file_name,text\n", r"3 prompts are expected \(found 0\)"),
        ("1.jpg,A dog\n", r"line 1: column 'file_name' is missing.*\(found '1\.jpg,A dog'\)"),
        ("file_name,caption\n1.jpg,A dog\n", r"line 1: column 'text' is missing.*'file_name,caption'"),
        ("file_name,text,text\n1.jpg,A,B\n", r"line 1: 2 columns 'text': 'file_name,text' is expected"),
        ("file_name,text\n1.jpg,A dog, asleep\n", r"line 2: 2 columns are expected, here are 3"),
        ("file_name,text\n1.jpg,A\n\n3.jpg,B\n", r"3 prompts are expected \(found 2\)"),
        ("file_name,text\n1.jpg,A\n2.jpg, \n3.jpg,B\n", r"line 3: empty caption \(found '2\.jpg'\)"),
        (
            "file_name,text\n1.jpg,A\n2.jpg,B\n1.jpg,C\n",
            r"line 4: this file name stands in line 2 already \(found '1\.jpg'\)",
        ),
        ('file_name,text\n1.jpg,"A dog\n', r"line 2: malformed CSV"),
        ("file_name,text\n1.jpg,A\n2.jpg,B\n", r"3 prompts are expected \(found 2\)"),
        (GOOD + "4.jpg,One more\n", r"3 prompts are expected \(found 4\)"),
        ("file_name,text\n1.jpg,A\n2.jpg,Un café\n".encode("latin-1"), r"line 3: this is not UTF-8"),
    ],
)
def test_a_malformed_file_names_file_line_and_remedy(
    content: str | bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_prompts(protocol_of(tmp_path, content), tmp_path)
    assert caught.value.file == tmp_path / "captions.csv"
    assert caught.value.remedy


def test_one_changed_letter_is_another_file(tmp_path: Path) -> None:
    protocol = protocol_of(tmp_path, GOOD)
    (tmp_path / "captions.csv").write_text(GOOD.replace("dog", "cat"), encoding="utf-8")
    with pytest.raises(
        DataError, match=r"wrong checksum: sha256 [0-9a-f]{64} is expected \(found '[0-9a-f]{64}'"
    ):
        load_prompts(protocol, tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "text,file_name\nA dog,1.jpg\nTwo,2.jpg\nThree,3.jpg\n",
        ",file_name,text\n0,1.jpg,A dog\n1,2.jpg,Two\n2,3.jpg,Three\n",  # as pandas writes its index
        "\ufefffile_name, text,id\n1.jpg,A dog,7\n2.jpg,Two,8\n3.jpg,Three,9\n",
    ],
    ids=["order", "index", "further"],
)
def test_columns_are_found_by_name(tmp_path: Path, content: str) -> None:
    assert load_prompts(protocol_of(tmp_path, content), tmp_path) == ("A dog", "Two", "Three")


def test_line_endings_that_git_converts_are_told_as_that(tmp_path: Path) -> None:
    protocol = protocol_of(tmp_path, GOOD)
    (tmp_path / "captions.csv").write_text(GOOD, encoding="utf-8", newline="\r\n")
    with pytest.raises(DataError, match=r"other line endings.*captions\.csv -text.*\.gitattributes"):
        load_prompts(protocol, tmp_path)


def test_a_pointer_of_git_lfs_is_no_file_of_prompts(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    with pytest.raises(DataError, match=r"Git LFS pointer.*git lfs pull"):
        load_prompts(protocol_of(tmp_path, pointer), tmp_path)


def test_a_file_that_is_meant_is_told_with_what_to_write(tmp_path: Path) -> None:
    protocol = protocol_of(tmp_path, GOOD)
    longer = GOOD + "4.jpg,One more\n"
    (tmp_path / "captions.csv").write_text(longer, encoding="utf-8")
    digest = hashlib.sha256(longer.encode()).hexdigest()
    with pytest.raises(DataError, match=rf"write into own\.yaml: rows: 4, sha256: {digest}"):
        load_prompts(protocol, tmp_path)


def test_a_file_beside_the_protocol_is_told_how_to_write(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"write \./captions\.csv"):
        load_prompts(protocol_of(tmp_path, GOOD), None)


def test_without_the_file_the_remedy_is_named(tmp_path: Path) -> None:
    protocol = protocol_of(tmp_path, None)
    with pytest.raises(Unavailable, match=r"Give the folder that holds captions\.csv with --sdbench-data"):
        load_prompts(protocol, None)
    with pytest.raises(Unavailable, match=r"captions\.csv.*give another folder with --sdbench-data"):
        load_prompts(protocol, tmp_path)
    with pytest.raises(Unavailable, match=r"mscoco_val2014_30k/metadata\.csv.*get_mscoco_files\.sh"):
        load_prompts(load_protocol("coco30k-bksdm"), None)


def test_the_prompts_of_scenes_are_the_captions_that_no_training_sees() -> None:
    prompts = load_prompts(load_protocol("scenes-quick"))
    assert prompts == tuple(scenes.captions(scenes.EVALUATION[:512]))
    assert load_prompts(load_protocol("scenes-quick").with_samples(3)) == prompts[:3]
    assert load_prompts(load_protocol("scenes-5k").with_samples(600))[:512] == prompts
    for name in ("scenes-quick", "scenes-5k", "scenes-30k"):
        protocol = load_protocol(name)
        assert protocol.prompts.model_dump()["first"] == scenes.EVALUATION.start
        assert protocol.prompts.rows == len(scenes.EVALUATION)


def test_prompts_of_a_domain_are_the_captions_of_the_same_scenes() -> None:
    for name in ("scenes-portrait-quick", "scenes-portrait-5k"):
        protocol = load_protocol(name)
        assert load_prompts(protocol) == tuple(scenes.captions(scenes.EVALUATION[: protocol.n], "faces"))
        assert protocol.prompts.model_dump()["first"] == scenes.EVALUATION.start
        assert protocol.prompts.rows == len(scenes.EVALUATION)


def test_prompts_of_layouts_are_those_of_their_scenes_in_order(tmp_path: Path) -> None:
    chosen = scenes.indices_of(["one", "row"], scenes.EVALUATION)
    drawn = [scenes.scene(index, "things") for index in islice(chosen, 600)]
    told = "".join(f"{one.caption}\n" for one in drawn[:512])
    checksum = hashlib.sha256(told.encode()).hexdigest()
    text = (reference() / "protocols" / "scenes-5k.yaml").read_text(encoding="utf-8")
    keys = f"layouts: [row, one]\n  domain: things\n  captions_sha256: {checksum}"
    path = tmp_path / "own.yaml"
    path.write_text(re.sub(r"captions_sha256: \w+", keys, text), encoding="utf-8")
    protocol = load_protocol(path)
    assert load_prompts(protocol)[:600] == tuple(one.caption for one in drawn)
    assert scenes_behind(protocol, [3, 598]) == {3: drawn[3], 598: drawn[598]}
    assert scenes_behind(protocol, []) == {}


def test_scenes_that_have_changed_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    old = scenes.captions
    monkeypatch.setattr(scenes, "captions", lambda *some: [f"{text}!" for text in old(*some)])
    with pytest.raises(DataError, match=r"others than the protocol means.*Else scenes have changed"):
        load_prompts(load_protocol("scenes-quick"))


def test_a_file_of_prompts_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_sdbench.protocols.prompts._LARGEST", len(GOOD.encode()))
    assert load_prompts(protocol_of(tmp_path, GOOD), tmp_path) == tuple(CAPTIONS)
    with pytest.raises(DataError, match=r"captions\.csv: the prompts cannot be read: .* bytes, and at most"):
        load_prompts(protocol_of(tmp_path, GOOD + "4.jpg,x\n", rows=4), tmp_path)
