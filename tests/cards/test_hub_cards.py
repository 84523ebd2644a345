"""Cards as the hub has them: without our block, with entries that are no claims, and namesakes."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from pytest_sdbench.base.errors import CardError
from pytest_sdbench.cards.card import is_card, own_names, read_card
from tests.cards.helpers import CARD, write

HUB = """---
license: mit
model-index:
- name: Theirs
  results:
  - task: {type: text-to-image}
    dataset: {type: coco, name: COCO 2017}
    metrics:
    - {type: FID, value: 18.2}
    - {type: accuracy, value: 0}
    - {type: clip-score, value: 0.31 ± 0.01}
  - task: {type: text-to-image}
    dataset: {type: coco, name: MS-COCO, config: coco30k-bksdm}
    metrics:
    - {type: FID, value: 17.1}
---
"""


def test_a_hub_card_is_readable_and_says_what_it_lacks(tmp_path: Path) -> None:
    card = read_card(write(tmp_path, HUB))
    assert card.size == {}
    assert [(claim.id, claim.gate_protocol) for claim in card.claims] == [
        ("unstated-fid-coco-2017", None),
        ("coco30k-bksdm-fid", "coco30k-bksdm"),
    ]
    notes = "\n".join(card.explained)
    for word in ("draft", "unstated-fid-coco-2017", "dataset.config"):
        assert word in notes
    assert [(problem.id, problem.fails) for problem in card.problems] == [
        ("model-index[0].results[0].metrics[1].type", False),
        ("unstated-clip_score-coco-2017", False),
    ]
    told = "\n".join(map(str, card.problems))
    for word in ("'accuracy'", "'0.31 ± 0.01'", "metrics[2].value"):
        assert word in told


def test_a_hub_card_is_held_to_honest_figures_too(tmp_path: Path) -> None:
    wrong = HUB.replace("{type: accuracy, value: 0}", "{type: clip_score, value: 31.0}")
    card = read_card(write(tmp_path, wrong))
    (problem,) = (problem for problem in card.problems if problem.fails)
    assert problem.id == "unstated-clip_score-coco-2017"
    assert "wrong scale (found 31.0). " in str(problem)
    assert "torchmetrics" in str(problem)
    assert "write 0.31" in str(problem)
    assert [claim.text for claim in card.claims] == ["18.2", "17.1"]


def test_a_hub_card_without_figures_says_so(tmp_path: Path) -> None:
    card = read_card(write(tmp_path, "---\nlicense: mit\n---\n# Theirs\n"))
    assert card.title == "Theirs"
    assert any("no figure" in note for note in card.explained)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CARD, True),
        (CARD.replace("\n", "\r\n"), True),
        (HUB, True),
        ("---\ntitle: post\n---\nsdbench: no\n", False),
        ("# About\n\nmodel-index: none\n", False),
        ('---\n"sdbench": {}\n---\n', True),
        ("---\nmeta:\n  sdbench: {}\n---\n", False),
        ("---\n  license: mit\n  sdbench: {}\n---\n", True),
        ("", False),
    ],
)
def test_only_front_matter_makes_a_card(text: str, expected: bool, tmp_path: Path) -> None:
    assert is_card(write(tmp_path, text)) is expected


@pytest.mark.parametrize("text", ["{{ card_data }}: 1", "{{ card_data }}", "sdbench:\n  checkpoint: {{ x }}"])
def test_a_template_that_nobody_filled_in_is_a_broken_card_at_the_worst(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.md"
    path.write_text(f"---\n{text}\n---\n# X\n", encoding="utf-8")
    with contextlib.suppress(CardError):
        read_card(path)


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a/one.md", "b/two.md"], ["one", "two"]),
        (["a/v1.md", "b/v1.md", "c.md"], ["a/v1", "b/v1", "c"]),
        (["x/v1/README.md", "y/v1/README.md"], ["x/v1", "y/v1"]),
        (["p/x/v1/README.md", "q/x/v1/README.md", "v1.md"], ["p/x/v1", "q/x/v1", None]),
    ],
)
def test_namesakes_are_told_apart_by_their_folders(
    tmp_path: Path, files: list[str], names: list[str]
) -> None:
    found = own_names([tmp_path / file for file in files])
    assert len(set(found.values())) == len(files)
    for file, name in zip(files, names, strict=True):
        if name is not None:
            assert found[tmp_path / file] == name


def test_a_file_and_a_folder_of_one_name_have_their_paths(tmp_path: Path) -> None:
    paths = [tmp_path / "v1.md", tmp_path / "v1" / "README.md"]
    assert list(own_names(paths).values()) == [str(path) for path in paths]


# --- entries that are no claims -------------------------------

ODD = """---
license: mit
model-index:
- name: Theirs
  results:
  - task: {type: text-to-image}
    dataset: {type: coco, name: COCO, config: coco30k-bksdm}
    metrics:
    - {type: inception_score, value: 36.76}
  - task: {type: text-to-image}
    dataset: {type: parti, name: Parti}
    metrics:
    - {type: fid, value: 13.05}
---
"""
PARTI = "    dataset: {type: parti, name: Parti}\n"
ODDITIES = r"""
parti, name: Parti} | parti, name: Parti, args: gl} | results[1].dataset.args | 'gl' | key: value | no
parti, name: Parti} | parti, name: Parti, args: [30k]} | results[1].dataset.args | ['30k'] | key: value | no
Parti} | Parti, args: {num_samples: 30k}} | results[1].dataset.args.num_samples | '30k' | such as 30000 | no
Parti} | Parti, args: {num_samples: -5}} | results[1].dataset.args.num_samples | -5 | such as 30000 | no
Parti} | Parti, args: {Num-Samples: 30k}} | results[1].dataset.args.Num-Samples | '30k' | such as 30000 | no
Parti} | Parti, args: {assumed: coco}} | results[1].dataset.args.assumed | 'coco' | Known protocols | no
Parti} | Parti, config: [a, b]} | results[1].dataset.config | ['a', 'b'] | quotes | no
Parti} | Parti, config: coco-5k} | results[1].dataset.config | 'coco-5k' | Did you mean 'coco5k' | no
Parti} | Parti, config: COCO-5K} | results[1].dataset.config | 'COCO-5K' | Did you mean 'coco5k' | no
{type: parti, name: Parti} | Parti | results[1].dataset | 'Parti' | key: value | no
parti, name: Parti | parti | results[1].dataset.name | | Add it | no
13.05 | null | results[1].metrics[0].value | is null | plain number | no
13.05 | [13.05, 0.1] | results[1].metrics[0].value | [13.05, 0.1] | plain number | no
13.05 | {mean: 13.05} | results[1].metrics[0].value | {'mean': 13.05} | plain number | no
13.05 | 29.58% | results[1].metrics[0].value | '29.58%' | plain number | no
13.05 | ~13 | results[1].metrics[0].value | '~13' | plain number | no
13.05 | "" | results[1].metrics[0].value | '' | plain number | no
13.05 | 2026-11-28 | results[1].metrics[0].value | 2026 | plain number | no
, value: 13.05 | | results[1].metrics[0].value | missing | Add it | no
13.05 | 1:30 | results[1].metrics[0].value | 1:30 | plain decimal number | no
13.05 | yes | results[1].metrics[0].value | yes | plain decimal number | no
13.05 | 1e400 | results[1].metrics[0].value | 1e400 | that is finite | no
13.05 | 1e1 | results[1].metrics[0].value | YAML 1.1 | Write 1.0e+1 | no
13.05 | 0 | results[1].metrics[0].value | zero | plain number | yes
13.05 | -.inf | results[1].metrics[0].value | -inf | plain number | yes
13.05 | true | results[1].metrics[0].value | True | plain number | yes
fid, value: 13.05 | clip_score, value: 29.58 | results[1].metrics[0].value | torchmetrics | write 0.2958 | yes
fid, value: 13.05 | CLIP, value: 310 | results[1].metrics[0].value | 310 | cosine | yes
type: fid | type: fidd | results[1].metrics[0].type | 'fidd' | Did you mean 'fid' | no
type: fid | type: FID-30K | results[1].metrics[0].type | 'FID-30K' | Did you mean 'fid' | no
type: fid | type: IS (10 splits) | results[1].metrics[0].type | (10 splits) | you mean 'inception_score' | no
type: fid | type: frechet inception distence | results[1].metrics[0].type | distence | Did you mean 'fid' | no
type: fid | type: sFID | results[1].metrics[0].type | 'sFID' | Known metrics | no
type: fid | type: CLIP-I score | results[1].metrics[0].type | 'CLIP-I score' | Known metrics | no
type: fid | type: MS-SSIM | results[1].metrics[0].type | 'MS-SSIM' | Known metrics | no
type: fid | type: wer | results[1].metrics[0].type | 'wer' | Known metrics | no
type: fid | type: 5 | results[1].metrics[0].type | 5 | quotes | no
type: fid, | | results[1].metrics[0].type | missing | Add it | no
- {type: fid, value: 13.05} | - fid | results[1].metrics[0] | 'fid' | key: value | no
    metrics:\n    - {type: fid, value: 13.05} | metrics: {fid: 13.05} | results[1].metrics | 13 | list | no
---\n$ | - just a name\n---\n | model-index[1] | 'just a name' | key: value | no
---\n$ | - {name: x, results: 13}\n---\n | model-index[1].results | 13 | list | no
---\n$ | - {name: x}\n---\n | model-index[1].results | missing | Add it | no
"""


_OF_OTHERS = ("'wer'", "'sFID'", "'MS-SSIM'", "'CLIP-I score'")
"""Metrics that are none of this suite, as messages quote them."""


@pytest.mark.parametrize("line", ODDITIES.strip("\n").splitlines(), ids=lambda line: line[:40])
def test_one_odd_entry_is_explained_and_the_rest_is_read(line: str, tmp_path: Path) -> None:
    good, bad, key, found, remedy, fails = (field.strip(" ") for field in line.split("|"))
    good, bad = (field.replace(r"\n", "\n") for field in (good, bad))
    whole = ODD[::-1].replace(good.removesuffix("$")[::-1], bad[::-1], 1)[::-1]
    assert whole != ODD
    card = read_card(write(tmp_path, whole, "README.md"))
    assert "coco30k-bksdm-inception_score" in [claim.id for claim in card.claims]
    (problem,) = card.problems
    text = str(problem.error)
    assert text.startswith(f"{card.path}: ")
    assert key in str(problem.error.key)
    assert found in text
    assert remedy in str(problem.error.remedy)
    assert problem.fails is (fails == "yes")
    # Where it is for this suite as well, whatever is of a metric of ours has to be right.
    ours = whole.replace("---\n", "---\nsdbench: {checkpoint: ./}\n", 1)
    (strictly,) = read_card(write(tmp_path, ours)).problems
    assert strictly.fails is not any(other in text for other in _OF_OTHERS)


@pytest.mark.parametrize("block", ["", "sdbench: {checkpoint: ./}\n"], ids=["hub", "ours"])
@pytest.mark.parametrize(
    ("results", "ids"),
    [
        (["A}|fid, value: 9.6", "B}|fid, value: 8"], ["a", "b"]),
        (["图}|fid, value: 9.6", "像}|fid, value: 8"], ["1", "2"]),
        (["A, config: g3}|fid, value: 9.6", "A}|fid, value: 8"], ["g3", ""]),
        (["A, args: {cfg: 3}}|fid, value: 9", "A, args: {cfg: 8}}|fid, value: 8"], ["cfg-3", "cfg-8"]),
        (["A}|fid, value: 9.6", "A}|fid, value: 9.7, verified: true"], ["", "verified"]),
        (["A}|fid, value: 9, name: FID 5k", "A}|fid, value: 8, name: FID 30k"], ["fid-5k", "fid-30k"]),
    ],
)
def test_figures_that_a_card_tells_apart_are_claims_of_their_own(
    results: list[str], ids: list[str], block: str, tmp_path: Path
) -> None:
    text = "".join(
        f"  - {{task: {{type: t}}, dataset: {{type: a, name: {dataset}, metrics: [{{type: {figure}}}]}}\n"
        for dataset, figure in (result.split("|") for result in results)
    )
    card = read_card(write(tmp_path, f"---\n{block}model-index:\n- name: M\n  results:\n{text}---\n"))
    assert not card.problems
    assert [claim.id for claim in card.claims] == [f"unstated-fid-{each}".strip("-") for each in ids]
    assert ("`config: g3` is no protocol" in "\n".join(card.explained)) is ("g3" in ids)


@pytest.mark.parametrize("config", ["coco30k", "coco30k-bksdm-v2", "scenes_quick2"])
def test_a_slip_in_the_name_of_a_protocol_fails_a_card_that_is_verified(tmp_path: Path, config: str) -> None:
    of = f"dataset: {{type: coco, name: COCO, config: {config}}}"
    result = f"{{task: {{type: t}}, {of}, metrics: [{{type: fid, value: 9.6}}]}}"
    index = f"model-index:\n- name: M\n  results:\n  - {result}\n"
    assert not any(problem.fails for problem in read_card(write(tmp_path, f"---\n{index}---\n")).problems)
    (problem,) = read_card(write(tmp_path, f"---\nsdbench: {{checkpoint: ./}}\n{index}---\n")).problems
    assert (problem.fails, problem.error.found) == (True, config)
    assert "unknown protocol" in str(problem)
    assert "Did you mean" in str(problem)


def test_another_number_of_images_is_no_slip(tmp_path: Path) -> None:
    """`coco-2k` is nearly `coco5k`, letter by letter, and no protocol of ours: it is shown alone."""
    result = (
        "{task: {type: t}, dataset: {type: c, name: C, config: coco-2k}, metrics: [{type: fid, value: 9}]}"
    )
    index = f"sdbench: {{checkpoint: ./}}\nmodel-index:\n- name: M\n  results:\n  - {result}\n"
    card = read_card(write(tmp_path, f"---\n{index}---\n"))
    assert not card.problems
    assert [claim.gate_protocol for claim in card.claims] == [None]


@pytest.mark.parametrize("spelt", ["num_samples", "n_samples", "numSamples", "num-images", "images"])
def test_the_number_of_images_is_read_however_it_is_spelt(tmp_path: Path, spelt: str) -> None:
    of = f"dataset: {{type: c, name: C, args: {{{spelt}: 5000}}}}"
    result = f"{{task: {{type: t}}, {of}, metrics: [{{type: fid, value: 9.6}}]}}"
    card = read_card(write(tmp_path, f"---\nmodel-index:\n- name: M\n  results:\n  - {result}\n---\n"))
    assert [claim.n for claim in card.claims] == [5000]


def test_the_same_figure_of_several_models_is_compared_with_none(tmp_path: Path) -> None:
    result = ODD[ODD.index("  - task") : ODD.index(PARTI)].rpartition("  - task")[0]
    models = "".join(f"- name: {name}\n  results:\n{result}" for name in ("Teacher", "Student"))
    text = f"---\nmodel-index:\n{models}---\n# Both\n"
    card = read_card(write(tmp_path, text))
    assert card.title == "Both"
    assert [(claim.id, claim.gate_protocol) for claim in card.claims] == [
        ("coco30k-bksdm-inception_score-teacher", None),
        ("coco30k-bksdm-inception_score-student", None),
    ]
    assert "several models" in "\n".join(card.explained)


@pytest.mark.parametrize(
    ("task", "claims"),
    [("object-detection", 0), ("image-classification", 0), ("text-to-image", 2), ("Text to Image", 2)],
)
def test_precision_of_another_task_is_none_of_ours(tmp_path: Path, task: str, claims: int) -> None:
    path = tmp_path / "detector.md"
    figures = "[{type: precision, value: 0.912}, {type: Recall, value: 0.87}]"
    path.write_text(
        f"---\nmodel-index:\n- name: x\n  results:\n  - {{task: {{type: {task}}}, "
        f"dataset: {{type: d, name: D}}, metrics: {figures}}}\n---\n",
        encoding="utf-8",
    )
    card = read_card(path)
    assert len(card.claims) == claims
    assert [problem.fails for problem in card.problems] == [False] * (2 - claims)
