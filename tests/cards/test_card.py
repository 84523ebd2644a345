"""What a card means, and what is said about a card that means nothing."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_sdbench.base.errors import CardError
from pytest_sdbench.base.schema import suggestion
from pytest_sdbench.cards.card import check_lineage, find_card, is_card, own_names, read_card
from pytest_sdbench.cards.schema import check_value
from pytest_sdbench.metrics.imported import imported_metric
from pytest_sdbench.metrics.registry import METRICS

CARD = """---
license: creativeml-openrail-m
model-index:
- name: Student
  results:
  - task: {type: text-to-image}
    dataset: {type: coco-2014, name: MS-COCO 2014 val, config: coco30k-bksdm, split: validation}
    metrics:
    - {type: fid, name: FID, value: 16.98}
    - {type: inception_score, name: IS, value: 31.680}
    - {type: clip_score, name: CLIP score (ViT-g/14), value: 0.2677}
    source: {name: Paper, url: "https://example.org/paper"}
  - task: {type: text-to-image}
    dataset:
      type: coco-2014
      name: MS-COCO 2014 val 30K
      config: unstated
      args: {num_samples: 30000, assumed: coco30k-bksdm}
    metrics:
    - {type: fid, value: 17.7266}
  - task: {type: text-to-image}
    dataset: {type: coco-2014, name: MS-COCO 2014 val 5K, config: unstated, args: {num_samples: 5000}}
    metrics:
    - {type: fid, value: 23.0478}
sdbench:
  checkpoint: nota-ai/bk-sdm-small@25230d9acc2121ed7ac95470910da031944b339a
  base: stable-diffusion-v1-4
  baseline: stable-diffusion-v1-4
  architecture: bk-sdm-small
  size:
    unet: {exact: 482346884, published: 0.490e+9}
    text_encoder: {exact: 123060480}
    image_decoder: {exact: 49490179}
    whole: {exact: 654897543, published: 0.66e+9}
  compute: {unet_macs: 255.4e+9}
  speed: {unet_ratio: {max: 0.75, source: own record, reason: fewer blocks}}
  memory: {peak_bytes: {max: 2.5e+9, device: NVIDIA A100}}
  protocols: [scenes-quick]
  margins: {fid: 0.45, coco30k-bksdm: {clip_score: 0.0008}}
  sources: {unstated: record sheet}
  records:
  - protocol: scenes-quick
    metric: fid
    value: 12.3456
    standard_error: 0.21
    n: 512
    protocol_fingerprint: "0123456789abcdef"
    checkpoint_fingerprint: "fedcba9876543210"
    device: cpu
    versions: {python: "3.11.7", torch: "2.15.0"}
    date: 2026-11-22
---

# Student of something

Body.
"""


def write(folder: Path, text: str = CARD, name: str = "student.md") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def test_a_card_is_read_whole(tmp_path: Path) -> None:
    card = read_card(write(tmp_path))
    assert (card.name, card.title, card.license) == ("student", "Student", "creativeml-openrail-m")
    assert card.checkpoint == "nota-ai/bk-sdm-small@25230d9acc2121ed7ac95470910da031944b339a"
    assert card.base == card.baseline == "stable-diffusion-v1-4"
    assert card.architecture == "bk-sdm-small"
    unet = card.size["unet"]
    assert (unet.exact, unet.published, unet.published_text) == (482346884, 490e6, "0.490e+9")
    assert card.size["text_encoder"].published is None
    assert card.unet_macs == 255.4e9
    assert card.speed is not None
    assert (card.speed.max, card.speed.source, card.speed.reason) == (0.75, "own record", "fewer blocks")
    assert card.memory is not None
    assert (card.memory.max, card.memory.device) == (2.5e9, "NVIDIA A100")
    assert card.protocols == ("scenes-quick",)
    (note,) = card.explained
    assert "unstated-5k-fid" in note
    assert "assumed" in note


def test_claims_keep_value_digits_protocol_margin_and_source(tmp_path: Path) -> None:
    claims = {claim.id: claim for claim in read_card(write(tmp_path)).claims}
    assert list(claims) == [
        "coco30k-bksdm-fid",
        "coco30k-bksdm-inception_score",
        "coco30k-bksdm-clip_score",
        "unstated-30k-fid",
        "unstated-5k-fid",
        "scenes-quick-fid-recorded",
    ]
    score = claims["coco30k-bksdm-inception_score"]
    assert (score.value, score.text, score.margin, score.kind) == (31.68, "31.680", None, "published")
    assert score.source is not None
    assert (score.source.name, score.source.url) == ("Paper", "https://example.org/paper")
    clip = claims["coco30k-bksdm-clip_score"]
    assert (clip.margin, clip.label) == (0.0008, "CLIP score (ViT-g/14)")
    assumed, shown = claims["unstated-30k-fid"], claims["unstated-5k-fid"]
    assert (assumed.gate_protocol, assumed.n, assumed.text) == ("coco30k-bksdm", 30000, "17.7266")
    assert (shown.gate_protocol, shown.n) == (None, 5000)
    assert shown.source is not None
    assert (shown.source.name, shown.source.url) == ("record sheet", None)
    recorded = claims["scenes-quick-fid-recorded"]
    assert (recorded.kind, recorded.text, recorded.n) == ("recorded", "12.3456", 512)
    assert recorded.record is not None
    assert recorded.record.versions == {"python": "3.11.7", "torch": "2.15.0"}
    assert recorded.record.date == "2026-11-22"
    assert recorded.record.protocol_fingerprint == "0123456789abcdef"


def test_every_figure_reads_as_the_hub_reads_it(tmp_path: Path) -> None:
    front = yaml.safe_load(CARD.split("---")[1])
    card = read_card(write(tmp_path))
    theirs = [
        metric["value"] for result in front["model-index"][0]["results"] for metric in result["metrics"]
    ]
    assert [claim.value for claim in card.claims if claim.kind == "published"] == theirs
    assert card.size["whole"].published == front["sdbench"]["size"]["whole"]["published"]
    assert card.unet_macs == front["sdbench"]["compute"]["unet_macs"]


BLOCK = CARD[CARD.index("sdbench:") : CARD.rindex("---")]
INDEX = CARD[CARD.index("model-index:") : CARD.index("sdbench:")]
# Each: what is replaced in the good card, by what; then the key, what was found, and the remedy.
BAD_LINES = r"""
  compute: {unet_macs | compute: [{unet_macs | line 36 | speed | or of the one above
license: cre | license: a: cre | line 2 | license: a: cre | Correct the YAML
base: stable | base: x\n  base: stable | line 28 | base | Keep one
baseline: | baselin: | sdbench.baselin | baselin | Did you mean 'baseline'
897543, published | 897543, publshed | sdbench.size.whole.publshed | publshed | Did you mean 'published'
image_decoder: { | image_decodr: { | sdbench.size.image_decodr | image_decodr | Did you mean 'image_decoder'
sdbench:\n | sd-bench:\n | sd-bench | sd-bench | Did you mean 'sdbench'
model-index: | model_index: | model_index | model_index | 'model-index'
config: coco30k-bksdm | config: coco30k-b | results[0].dataset.config | coco30k-b | Did you mean 'coco30k-bksd
[scenes-quick] | [scenes-quik] | sdbench.protocols[0] | scenes-quik | Did you mean 'scenes-quick'
assumed: coco30k-bksdm | assumed: coco | results[1].dataset.args.assumed | coco | Known protocols
split: validation | args: {assumed: coco5k} | results[0].dataset.args.assumed | coco5k | config: unstated
num_samples: 5000 | num_samples: many | results[2].dataset.args.num_samples | many | whole number
type: fid, name: FID | type: fidd | model-index[0].results[0].metrics[0].type | fidd | Did you mean 'fid'
16.98 | 0 | model-index[0].results[0].metrics[0].value | 0 | Write the published
16.98 | .nan | model-index[0].results[0].metrics[0].value | nan | Write the published
16.98 | .inf | results[0].metrics[0].value | inf | Write the published
16.98 | -16.98 | results[0].metrics[0].value | -16.98 | Write the published
16.98 | TBD | results[0].metrics[0].value | TBD | placeholder
16.98 | null | results[0].metrics[0].value | None | placeholder
16.98 | true | results[0].metrics[0].value | True | placeholder
16.98 | 16.98 +- 0.2 | results[0].metrics[0].value | 16.98 +- 0.2 | plain number
fid, name: FID, value: 16.98 | kid, value: -0.1 | results[0].metrics[0].value | -0.1 | Write the published
fid, name: FID, value: 16.98 | kid, value: 2.5 | results[0].metrics[0].value | 2.5 | write 0.0025
fid, name: FID, value: 16.98 | density, value: 96 | results[0].metrics[0].value | 96 | write 0.96
0.2677 | 26.77 | results[0].metrics[2].value | 26.77 | write 0.2677
31.680 | 0.3168 | results[0].metrics[1].value | 0.3168 | between 1
0.490e+9 | 0.49 | sdbench.size.unet.published | 0.49 | not billions
0.490e+9 | 4.9e+9 | sdbench.size.unet.published | 4900000000 | 482,346,884
654897543 | 654897544 | sdbench.size.whole.exact | 654897544 | 654897543
482346884 | 0.48e+9 | sdbench.size.unet.exact | 480000000 | whole number
49490179 | 0 | sdbench.size.image_decoder.exact | 0 | larger
255.4e+9 | 255.4 | sdbench.compute.unet_macs | 255.4 | 255.4e+9
255.4e+9 | 0255000000000 | sdbench.compute.unet_macs | 0255000000000 |
255.4e+9 | 0o3554000000 | sdbench.compute.unet_macs | |
255.4e+9 | .5e9 | sdbench.compute.unet_macs | .5e9 |
255.4e+9 | 4:25:00:00:00 | sdbench.compute.unet_macs | |
0.490e+9 | 0.490e9 | sdbench.size.unet.published | 0.490e9 | 0.490e+9
16.98 | 1.698e1 | results[0].metrics[0].value | 1.698e1 | 1.698e+1
n: 512 | n: 0512 | sdbench.records[0].n | 0512 | plain decimal
device: cpu | device: on | sdbench.records[0].device | on | "on"
inception_score, name: IS, value: 31.680 | FID, value: 17.05 | coco30k-bksdm-fid | 16.98 and 17.05 | Keep one
architecture: bk-sdm-s | architecture: bk-sdm-x | sdbench.architecture | bk-sdm-x | Did you mean 'bk-sdm-
architecture: bk-sdm-small | architecture: {layers: 2} | sdbench.architecture | layers | block_out_channels
checkpoint: nota-ai/bk-sdm-small@ | checkpoint: {base: x, vae: y} # | checkpoint | base, vae | unet: FOLDER
baseline: stable-diffusion-v1-4\n  arch | arch | sdbench.baseline | | Name the baseline
max: 0.75 | max: 0 | sdbench.speed.unet_ratio.max | 0 | larger
max: 0.75, | | sdbench.speed.unet_ratio.max | | Add it
fid: 0.45 | fid: 0 | sdbench.margins.fid | 0 | larger
fid: 0.45 | fidd: 0.45 | sdbench.margins.fidd | fidd | Did you mean 'fid'
coco30k-bksdm: {clip | coco30k: {clip | sdbench.margins.coco30k | coco30k | Known protocols
fid: 0.45 | fid: 17 | sdbench.margins.fid | 17 | well below 16.98
sources: {unstated | sources: {unstatd | sdbench.sources.unstatd | record sheet | Did you mean 'unstated'
value: 12.3456 | value: 0.0 | sdbench.records[0].value | 0.0 | Write
n: 512\n    protocol | protocol | sdbench.records[0].n | | Add it
n: 512\n | N: 512\n | sdbench.records[0].N | N | Known keys
- protocol: scenes-quick | - protocol: scenes | sdbench.records[0].protocol | scenes | Known protocols
"""
DATASET = "    dataset: {type: coco-2014, name: MS-COCO 2014 val, config: coco30k-bksdm, split: validation}\n"
BAD = [
    *([field.strip() for field in line.split("|")] for line in BAD_LINES.strip().splitlines()),
    [DATASET, "", "model-index[0].results[0].dataset", "", "Add it"],
    [BLOCK, "sdbench: yes please\n", "sdbench", "yes please", "key: value"],
    [BLOCK, "sdbench:\n", "sdbench", "", "key: value"],
    [INDEX, "model-index: good\n", "model-index", "good", "results"],
    [CARD, "---\n- a\n---\n", "line 2", "list", "key: value"],
    [CARD, "# Student\n", "line 1", "# Student", "draft"],
    [CARD, "---\n---\n", "line 1", "", "draft"],
    [CARD, "\ufeff" + CARD, "byte 0", "", "UTF-8"],
    [CARD, "-" + CARD, "line 1", "----", "`---` alone"],
    [CARD, CARD.replace("---", "--- ", 1), "line 1", "---", "`---` alone"],
    ["---\n\n# Student of", "-----\n\n# Student of", "line 1", "-----", "`---` alone"],
]


@pytest.mark.parametrize("case", BAD, ids=lambda case: case[1][:20])
def test_bad_input_names_file_key_found_and_remedy(case: list[str], tmp_path: Path) -> None:
    good, bad, key, found, remedy = (field.replace(r"\n", "\n") for field in case)
    assert good in CARD
    path = write(tmp_path, CARD.replace(good, bad, 1))
    try:
        card = read_card(path)
    except CardError as raised:
        error = raised
    else:
        # Of the hub's own index one entry is a problem, and nothing else of the card is lost by it.
        error = card.problems[0].error
        assert all(problem.fails for problem in card.problems)
        assert card.size["unet"].exact == 482346884
        assert [claim.kind for claim in card.claims][-1] == "recorded"
    text = str(error)
    assert text.startswith(f"{path}: ")
    assert key in str(error.key), text
    assert found in str(error.found), text
    assert remedy in str(error.remedy), text


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "latin.md"
    path.write_bytes(CARD.encode().replace(b"Student", "Schüler".encode("latin-1"), 1))
    with pytest.raises(CardError, match=r"latin\.md: byte 59: .*not UTF-8.*Save the file as UTF-8"):
        read_card(path)
    for place in (tmp_path / "missing.md", tmp_path):
        assert not is_card(place)
        with pytest.raises(CardError, match="Check the path") as caught:
            read_card(place)
        assert caught.value.file == place


@pytest.mark.parametrize("spelling", ["2e9", "0.49e9", "5e9", "1_000.5e6", "2.5E9", "+3e9"])
def test_the_advised_spelling_of_a_number_is_one_to_the_hub(spelling: str, tmp_path: Path) -> None:
    assert isinstance(yaml.safe_load(spelling), str)
    with pytest.raises(CardError, match=r"YAML 1\.1") as caught:
        read_card(write(tmp_path, CARD.replace("255.4e+9", spelling)))
    advised = str(caught.value.remedy).removeprefix("Write ").split(",")[0]
    assert yaml.safe_load(advised) == float(spelling)
    assert read_card(write(tmp_path, CARD.replace("255.4e+9", advised))).unet_macs == float(spelling)


@pytest.mark.parametrize("spelling", ["255.4e+9", "255400000000", "255400000000.0", "255_400_000_000"])
def test_numbers_that_both_read_alike_are_taken(spelling: str, tmp_path: Path) -> None:
    card = read_card(write(tmp_path, CARD.replace("255.4e+9", spelling)))
    assert card.unet_macs == yaml.safe_load(spelling) == 255.4e9


def test_a_readme_is_named_after_its_folder_and_speaks_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "my-student"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    card = read_card(write(folder, "---\nsdbench:\n  records: []\n---\n\n# My student #\n", "README.md"))
    assert (card.name, card.title, card.checkpoint) == ("my-student", "My student", "./")


def test_a_key_without_a_value_is_one_left_out(tmp_path: Path) -> None:
    keys = ("size", "compute", "speed", "memory", "protocols", "margins", "sources", "records", "devices")
    empty = "".join(f"  {key}:\n" for key in keys)
    card = read_card(write(tmp_path, f"---\nsdbench:\n{empty}---\n"))
    assert (card.size, card.speed, card.protocols, card.margins, card.records) == ({}, None, (), {}, ())


def test_protocols_beside_the_card_are_known(tmp_path: Path) -> None:
    (tmp_path / "protocols").mkdir()
    (tmp_path / "protocols" / "ours.yaml").write_text("")
    assert read_card(write(tmp_path, CARD.replace("[scenes-quick]", "[ours]"))).protocols == ("ours",)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "theirs.yaml").write_text("")
    path = write(tmp_path, CARD.replace("[scenes-quick]", "[theirs]"))
    assert read_card(path, search=[elsewhere]).protocols == ("theirs",)


def test_a_negative_kid_can_be_recorded(tmp_path: Path) -> None:
    text = CARD.replace("metric: fid\n    value: 12.3456", "metric: kid\n    value: -0.0001")
    assert read_card(write(tmp_path, text)).records[0].value == -0.0001


def test_a_comment_in_a_block_of_code_is_no_title(tmp_path: Path) -> None:
    body = "<!--\n# hidden\n-->\n```bash\n# first install\n```\n\n# Ours\n"
    card = write(tmp_path, f"---\nsdbench: {{checkpoint: ./}}\n---\n{body}")
    assert read_card(card).title == "Ours"


def test_the_beginning_of_a_name_means_it() -> None:
    assert suggestion("coco30k", ["coco5k", "coco30k-bksdm"]) == "Did you mean 'coco30k-bksdm'? "
    assert suggestion("coco4k", ["coco5k", "coco30k-bksdm"]) == "Did you mean 'coco5k'? "


@pytest.mark.parametrize(
    ("bounds", "value", "wrong"),
    [
        ({"higher_is_better": True, "minimum": -3, "maximum": 3}, -0.12, ""),
        ({"higher_is_better": True}, -0.12, ""),
        ({"higher_is_better": False, "minimum": 0, "maximum": 1}, 0, ""),
        ({"higher_is_better": True, "minimum": 0, "maximum": 1}, 0, "is zero"),
        ({"higher_is_better": False, "minimum": 0, "maximum": 1}, -0.1, "wrong scale"),
    ],
)
def test_a_figure_of_another_tool_may_be_what_its_bounds_allow(
    bounds: dict[str, Any], value: float, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds = {"minimum": None, "maximum": None} | bounds
    known = {**METRICS._loaded, "reward": imported_metric("reward", "Reward", **bounds)}
    monkeypatch.setattr(METRICS, "_loaded", known)
    if not wrong:
        assert check_value(Path("card.md"), ("value",), "reward", value) == value
        return
    with pytest.raises(CardError, match=wrong):
        check_value(Path("card.md"), ("value",), "reward", value)
    if value == 0:  # as a measurement it is one like others
        assert check_value(Path("card.md"), ("value",), "reward", value, recorded=True) == 0


# --- lineage ----------------------------------------


def card_of(folder: Path, name: str, **keys: str) -> Path:
    lines = "".join(f"  {key}: {value}\n" for key, value in keys.items())
    return write(folder, f"---\nsdbench:\n{lines}  records: []\n---\n", f"{name}.md")


@pytest.mark.parametrize("key", ["base", "baseline"])
def test_an_unknown_relative_is_named_with_a_suggestion(key: str, tmp_path: Path) -> None:
    card = read_card(card_of(tmp_path, "a", **{key: "stable-diffusion-v1-6"}))
    told = rf"^\S*a\.md: sdbench\.{key}: .*'stable-diffusion-v1-6'.*Did you mean 'stable-diffusion-v1-"
    with pytest.raises(CardError, match=told):
        check_lineage(card)


@pytest.mark.parametrize("key", ["base", "baseline"])
@pytest.mark.parametrize(
    ("lineage", "chain"),
    [("ab bc ca", "a -> b -> c -> a"), ("aa", "a -> a"), ("ab bc cb", "a -> b -> c -> b")],
    ids=["a cycle", "itself", "a cycle further down"],
)
def test_a_cycle_is_shown(key: str, lineage: str, chain: str, tmp_path: Path) -> None:
    cards = [card_of(tmp_path, card, **{key: relative}) for card, relative in lineage.split()]
    with pytest.raises(CardError, match=f"{chain}.*Remove the {key}") as caught:
        check_lineage(read_card(cards[0]))
    assert caught.value.key == f"sdbench.{key}"


def test_a_card_beside_comes_before_a_packaged_one(tmp_path: Path) -> None:
    packaged = find_card("tiny-sd", tmp_path / "x.md")
    assert packaged.parent.name == "cards"
    beside = card_of(tmp_path, "tiny-sd")
    assert find_card("tiny-sd", tmp_path / "x.md") == find_card("tiny-sd", tmp_path) == beside


def test_readme_cards_of_neighbouring_folders_are_found(tmp_path: Path) -> None:
    for name in ("teacher", "student"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, CARD, "README.md")
    found = find_card("teacher", tmp_path / "student" / "README.md")
    assert found == tmp_path / "teacher" / "README.md"


@pytest.mark.parametrize("kind", ["two cards", "a link", "no card"])
def test_a_name_of_a_file_and_of_a_folder_is_that_of_no_card(tmp_path: Path, kind: str) -> None:
    file, folder = card_of(tmp_path, "v1"), tmp_path / "v1"
    folder.mkdir()
    if kind == "a link":
        (folder / "README.md").symlink_to(file)
    else:
        write(folder, CARD if kind == "two cards" else "# Weights\n", "README.md")
    if kind != "two cards":
        assert find_card("v1", tmp_path) == file
        return
    student = card_of(tmp_path, "student", base="v1")
    for look in (lambda: find_card("v1", tmp_path), lambda: check_lineage(read_card(student))):
        with pytest.raises(CardError, match=r"the name of 2 cards: .*v1\.md, .*v1/README\.md .found 'v1'"):
            look()


# --- hub cards without our block ----------------------------------------

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
    ("task", "claims"), [("object-detection", 0), ("image-classification", 0), ("text-to-image", 2)]
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
