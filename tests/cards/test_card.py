"""What a card means, and what is said about a card that means nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_sdbench.base.errors import CardError
from pytest_sdbench.base.schema import suggestion
from pytest_sdbench.cards.card import check_lineage, find_card, is_card, read_card
from pytest_sdbench.cards.schema import check_value
from pytest_sdbench.metrics.imported import imported_metric
from pytest_sdbench.metrics.registry import METRICS
from tests.cards.helpers import CARD, write


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
0.490e+9 | 82 | sdbench.size.unet.published | 82 | 0.48e+9
{unet_macs: 255.4e+9} | {unet_macs: 1e-05} | sdbench.compute.unet_macs | 1e-05 |
max: 0.75 | max: 75 | sdbench.speed.unet_ratio.max | 75 | not percent: 0.75
max: 2.5e+9 | max: 2.5 | sdbench.memory.peak_bytes.max | 2.5 | not GB: 2.5e+9
max: 2.5e+9 | max: 12 | sdbench.memory.peak_bytes.max | 12 | not GB: 12.0e+9
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
    ["---\n\n# Student of", "  ---\n\n# Student of", "line 1", "---", "not indented"],
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
