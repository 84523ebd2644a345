"""Protocols: what is in them, what moves which fingerprint, and what a slip of the pen says."""

from __future__ import annotations

import json
import pickle
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pytest_sdbench.base.errors import ProtocolError
from pytest_sdbench.base.paths import reference
from pytest_sdbench.metrics.inception_score import Splits
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.protocols.load import load_protocol, protocol_names
from pytest_sdbench.protocols.metric_specs import ReferencedSpec
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.protocols.sections import Jpeg, Resize

SHIPPED = {
    **{"coco30k-bksdm": 30000, "coco5k": 5000, "scenes-30k": 30000, "scenes-5k": 5000},
    **{"scenes-dpm10-fidelity": 512, "scenes-dpm10-quick": 512},
    **{"scenes-fidelity": 512, "scenes-lcm4-5k": 5000, "scenes-lcm4-fidelity": 1000},
    **{"scenes-lcm4-quick": 512},
    **{"scenes-portrait-5k": 5000, "scenes-portrait-quick": 512, "scenes-quick": 512},
}


@cache
def shipped(name: str) -> str:
    return json.dumps(YAML(typ="safe", pure=True).load(reference() / "protocols" / f"{name}.yaml"))


def edited(tmp_path: Path, changes: dict[str, Any], base: str = "coco30k-bksdm", name: str = "own") -> Path:
    """Write a shipped protocol with some keys changed; a dotted key reaches inside, `DELETE` removes it."""
    content = json.loads(shipped(base))
    for dotted, value in changes.items():
        *outer, last = [int(part) if part.isdigit() else part for part in dotted.split(".")]
        place = content
        for part in outer:
            place = place[part]
        if value == "DELETE":
            del place[last]
        else:
            place[last] = value
    path = tmp_path / f"{name}.yaml"
    path.write_text(json.dumps(content), encoding="utf-8")  # which is YAML as well
    return path


def test_every_shipped_protocol_loads_by_name() -> None:
    assert protocol_names() == tuple(SHIPPED)
    assert [load_protocol(name).name for name in SHIPPED] == list(SHIPPED)
    assert {name: load_protocol(name).n for name in SHIPPED} == SHIPPED


def test_the_published_protocol_has_every_published_step() -> None:
    protocol = load_protocol("coco30k-bksdm")
    prompts, seeds, sampling = protocol.prompts, protocol.seeds, protocol.sampling
    assert prompts.kind == "csv"
    assert prompts.sha256 == "48eebd3306c6aea71baf45f489dfa1e199149a62cf040804d23f68a413758b7a"
    assert (prompts.file, prompts.rows, protocol.n) == ("mscoco_val2014_30k/metadata.csv", 30000, 30000)
    assert (seeds.kind, seeds.seed) == ("sequential", 1234)
    assert seeds.model_dump()["device"] == "cuda"
    assert (sampling.scheduler.name, sampling.scheduler.must_be) == ("checkpoint", "PNDMScheduler")
    assert (sampling.steps, sampling.guidance, sampling.negative_prompt) == (25, 7.5, None)
    assert (sampling.resolution, sampling.dtype) == (512, "float16")
    assert protocol.image == (Jpeg(jpeg=75), Resize(resize=256, filter="pil-bicubic"), Jpeg(jpeg=75))
    fid, score, clip = (protocol.metrics[name] for name in ("fid", "inception_score", "clip_score"))
    assert isinstance(fid, ReferencedSpec)
    assert fid.extractor == "inception-pytorch-fid"
    assert fid.statistics.file == "mscoco_val2014_41k_full/real_im256.npz"
    assert (fid.statistics.images, fid.statistics.sha256) == (40504, None)
    assert score.extractor == "inception-torch-fidelity"
    assert METRICS["inception_score"].options_of(score) == Splits(splits=10, shuffle_seed=2020)
    assert clip.extractor == "open_clip:ViT-g-14/laion2b_s34b_b88k"
    assert protocol.extractors == ("inception-pytorch-fid", "inception-torch-fidelity", clip.extractor)


FAMILIES = [
    ("coco30k-bksdm", "coco5k"),
    ("scenes-quick", "scenes-5k", "scenes-30k"),
    ("scenes-dpm10-quick", "scenes-dpm10-fidelity"),
    ("scenes-lcm4-quick", "scenes-lcm4-5k"),
    ("scenes-portrait-quick", "scenes-portrait-5k"),
]


SCHEDULERS = {
    "lcm4-": (4, {"name": "checkpoint", "must_be": "LCMScheduler"}),
    "dpm10-": (10, {"name": "DPMSolverMultistepScheduler", "config": {"timestep_spacing": "trailing"}}),
}


@pytest.mark.parametrize(
    ("kind", "size", "changed"),
    [
        *(("lcm4-", size, {"title", "description", "sampling", "margins"}) for size in ("quick", "5k")),
        *(("dpm10-", size, {"title", "description", "sampling"}) for size in ("quick", "fidelity")),
        *(
            ("portrait-", size, {"title", "description", "prompts", "sampling", "metrics", "margins"})
            for size in ("quick", "5k")
        ),
    ],
)
def test_protocols_of_other_models_change_no_more_than_they_need(
    kind: str, size: str, changed: set[str]
) -> None:
    theirs, ours = (json.loads(shipped(f"scenes-{each}{size}")) for each in ("", kind))
    assert {key for key in theirs if theirs[key] != ours[key]} == changed
    steps, scheduler = SCHEDULERS.get(kind, SCHEDULERS["dpm10-"])
    assert ours["sampling"] == theirs["sampling"] | {"steps": steps, "scheduler": scheduler}
    if kind == "portrait-":
        assert ours["prompts"]["domain"] == "faces"
        for name in ("inception_score", "clip_score"):
            assert ours["metrics"][name] == theirs["metrics"][name]


def test_layouts_are_a_set_and_their_absence_moves_no_fingerprint(tmp_path: Path) -> None:
    def fingerprint(layouts: list[str] | None) -> str:
        path = edited(tmp_path, {"prompts.layouts": layouts}, "scenes-quick")
        return load_protocol(path).draw_fingerprint

    assert fingerprint(None) == load_protocol("scenes-quick").draw_fingerprint
    assert fingerprint(["row", "one"]) == fingerprint(["one", "row", "one"]) != fingerprint(["one"])
    assert fingerprint(["one"]) != fingerprint(None)


def test_a_domain_moves_the_fingerprint_unless_it_is_all(tmp_path: Path) -> None:
    def fingerprint(domain: str) -> str:
        path = edited(tmp_path, {"prompts.domain": domain}, "scenes-quick")
        return load_protocol(path).draw_fingerprint

    assert fingerprint("all") == load_protocol("scenes-quick").draw_fingerprint
    assert len({fingerprint(domain) for domain in ("all", "faces", "things")}) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_one_family_shares_its_images_and_no_claims(family: tuple[str, ...]) -> None:
    protocols = [load_protocol(name) for name in family]
    assert len({protocol.draw_fingerprint for protocol in protocols}) == 1
    assert len({protocol.fingerprint for protocol in protocols}) == len(family)


CHECKSUM = "0" * 64
MOVES_NOTHING = {
    "title": "Another title",
    "description": "Other words.",
    "source": {"name": "somebody"},
    "margins": {"fid": 9.0},
    "prompts.file": "elsewhere/captions.csv",
}
MOVES_THE_CLAIM = {
    "n": 29999,
    "metrics.fid.statistics.sha256": CHECKSUM,
    "metrics.fid.statistics.file": "other.npz",
    "metrics.fid.statistics.images": 30000,
    "metrics.inception_score.splits": 1,
    "metrics.inception_score.shuffle_seed": None,
    "metrics.fid.extractor": "inception-torch-fidelity",
    "metrics.inception_score.extractor": "other",
    "metrics.clip_score.model": "open_clip:ViT-B-32/openai",
}
MOVES_THE_DRAW = {
    "prompts.sha256": CHECKSUM,
    "seeds.seed": 1235,
    "seeds.device": "cpu",
    "seeds": {"kind": "per-image", "seed": 1234},
    "sampling.scheduler": "checkpoint",
    "sampling.scheduler.config": {"skip_prk_steps": False},
    "sampling.steps": 50,
    "sampling.guidance": 7.0,
    "sampling.negative_prompt": "blurry",
    "sampling.resolution": 256,
    "sampling.dtype": "float32",
    "image": [],
    "image.0.jpeg": 95,
    "image.1.filter": "pil-lanczos",
    "image.1.resize": 299,
    "image.2": "DELETE",
}


@pytest.mark.parametrize(
    ("changes", "moved"),
    [(change, "nothing") for change in MOVES_NOTHING.items()]
    + [(change, "claim") for change in MOVES_THE_CLAIM.items()]
    + [(change, "draw") for change in MOVES_THE_DRAW.items()],
    ids=lambda part: part if isinstance(part, str) else part[0],
)
def test_which_field_moves_which_fingerprint(changes: tuple[str, Any], moved: str, tmp_path: Path) -> None:
    before, after = load_protocol("coco30k-bksdm"), load_protocol(edited(tmp_path, dict([changes])))
    assert (after.draw_fingerprint != before.draw_fingerprint) == (moved == "draw")
    assert (after.fingerprint != before.fingerprint) == (moved != "nothing")


def test_a_checksum_in_capitals_is_the_same(tmp_path: Path) -> None:
    capitals = edited(tmp_path, {"prompts.sha256": load_protocol("coco30k-bksdm").prompts.sha256.upper()})
    assert load_protocol(capitals).fingerprint == load_protocol("coco30k-bksdm").fingerprint


@pytest.mark.parametrize("ending", ["yaml", "yml"])
def test_a_protocol_is_found_by_its_name_with_or_without_its_ending(tmp_path: Path, ending: str) -> None:
    place = tmp_path / "protocols" / f"mine.{ending}"
    place.parent.mkdir()
    edited(tmp_path, {"n": 7}).rename(place)
    (place.parent / "._mine.yaml").write_bytes(b"\0\5\x16\7")
    assert load_protocol("mine", [tmp_path]).n == load_protocol(place.name, [tmp_path]).n == 7


def test_the_captions_of_scenes_move_the_draw(tmp_path: Path) -> None:
    before = load_protocol("scenes-quick")
    for changes in ({"prompts.first": 10_000_001}, {"prompts.captions_sha256": CHECKSUM}, {"seeds.seed": 7}):
        after = load_protocol(edited(tmp_path, changes, "scenes-quick"))
        assert after.draw_fingerprint != before.draw_fingerprint
    more = load_protocol(edited(tmp_path, {"prompts.rows": 40_000}, "scenes-quick"))
    assert (more.draw_fingerprint, more.fingerprint) == (before.draw_fingerprint, before.fingerprint)


def without(folder: Path, *metrics: str, **changes: Any) -> Protocol:
    """Return scenes-quick before it had some of its metrics, under other changes."""
    gone = {f"{key}.{metric}": "DELETE" for metric in metrics for key in ("metrics", "margins")}
    return load_protocol(edited(folder, gone | changes, "scenes-quick"))


@pytest.mark.parametrize("lacking", [(), ("kid",), ("inception_score",), ("fid", "kid", "clip_score")])
def test_a_metric_is_added_to_a_draw_and_what_was_recorded_before_stays(
    lacking: tuple[str, ...], tmp_path: Path
) -> None:
    protocol, before = load_protocol("scenes-quick"), without(tmp_path, *lacking)
    assert before.draw_fingerprint == protocol.draw_fingerprint
    assert (before.fingerprint == protocol.fingerprint) == (not lacking)
    assert protocol.covers(before.fingerprint)
    for metric in protocol.metrics:
        assert protocol.covers(before.fingerprint, metric) == (metric not in lacking)
    # What has more metrics, or is of other images, is another claim.
    assert before.covers(protocol.fingerprint) == (not lacking)
    for changes in ({"n": 511}, {"seeds.seed": 7}):
        assert not protocol.covers(without(tmp_path, *lacking, **changes).fingerprint)


def test_a_metric_that_has_changed_covers_nothing_of_itself(tmp_path: Path) -> None:
    splits = {"metrics.inception_score.splits": 2}
    changed = without(tmp_path, **splits)
    assert not changed.covers(load_protocol("scenes-quick").fingerprint)
    assert changed.covers(without(tmp_path, "inception_score").fingerprint, "fid")


def test_fingerprints_do_not_change_between_versions() -> None:
    """Recorded figures and stored evidence are found by them: a change here is a change of format."""
    protocol = load_protocol("coco30k-bksdm")
    assert (protocol.draw_fingerprint, protocol.fingerprint) == ("71490174fa79b084", "99c16d51c3c06041")
    with pytest.raises(Exception, match="frozen"):
        protocol.n = 5  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(protocol)) == protocol


def test_another_number_of_images_is_another_claim_on_the_same_draw() -> None:
    protocol = load_protocol("scenes-quick")
    fewer = protocol.with_samples(64)
    assert (fewer.n, fewer.name) == (64, "scenes-quick")
    assert fewer.draw_fingerprint == protocol.draw_fingerprint
    assert fewer.fingerprint != protocol.fingerprint
    assert fewer.with_samples(512) == protocol
    assert protocol.with_samples(5000).fingerprint == load_protocol("scenes-5k").fingerprint
    with pytest.raises(ProtocolError, match="only 30000 prompts"):
        protocol.with_samples(30001)


def test_another_precision_is_another_claim_and_another_generator_another_draw(tmp_path: Path) -> None:
    protocol = load_protocol("coco30k-bksdm")
    assert protocol.with_dtype("float32").sampling.dtype == "float32"
    assert protocol.with_dtype("float32").draw_fingerprint != protocol.draw_fingerprint
    assert protocol.with_dtype("float16") == protocol
    assert protocol.with_seeds_on("cpu").draw_fingerprint != protocol.draw_fingerprint
    # A checksum stands for the statistics that it is of, wherever they lie.
    here = {"metrics.fid.statistics.sha256": CHECKSUM}
    moved = here | {"metrics.fid.statistics.file": "other/place.npz"}
    one, two = (load_protocol(edited(tmp_path, changes)) for changes in (here, moved))
    assert one.fingerprint == two.fingerprint


def test_a_team_keeps_its_own_protocol_beside_its_card(tmp_path: Path) -> None:
    (tmp_path / "protocols").mkdir()
    path = edited(tmp_path / "protocols", {"sampling.steps": 50}, name="fifty")
    assert load_protocol("fifty", search=[tmp_path]).sampling.steps == 50
    assert load_protocol("fifty", search=[tmp_path / "protocols"]) == load_protocol(path)
    assert load_protocol(str(path)).name == "fifty"
    assert "fifty" in protocol_names([tmp_path])
    with pytest.raises(ProtocolError, match="unknown protocol"):
        load_protocol("fifty")


def test_a_name_cannot_mean_two_protocols(tmp_path: Path) -> None:
    path = edited(tmp_path, {"sampling.steps": 50}, name="coco5k")
    with pytest.raises(ProtocolError, match=r"'coco5k' is taken by .*Give this file another name"):
        load_protocol("coco5k", search=[tmp_path])
    shutil.copy(reference() / "protocols/coco5k.yaml", path)
    assert load_protocol("coco5k", search=[tmp_path]).n == 5000


def test_files_are_found_in_the_package_beside_the_protocol_or_under_the_data_root(tmp_path: Path) -> None:
    protocol = load_protocol(edited(tmp_path, {}))
    assert protocol.locate("embedded:statistics/x.npz", None) == reference() / "statistics/x.npz"
    assert protocol.locate("./x.npz", Path("/data")) == tmp_path / "x.npz"
    assert protocol.locate("a/x.npz", Path("/data")) == Path("/data/a/x.npz")
    assert protocol.locate("a/x.npz", None) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidence": 7.5}, r"guidence: unknown key.*Known keys: title, .*margins"),
        ({"sampling.guidence": 7.5}, r"sampling\.guidence: unknown key.*Did you mean 'guidance'\?"),
        ({"sampling.scheduler.overrides": {}}, r"sampling\.scheduler\.overrides: unknown key.*config"),
        ({"prompts.sha265": CHECKSUM}, r"prompts\.sha265: unknown key.*Did you mean 'sha256'\?"),
        ({"image.1.filtr": "x"}, r"image\[1\]\.filtr: unknown key.*Did you mean 'filter'\?"),
        ({"metrics.fid.extractr": "x"}, r"metrics\.fid\.extractr: unknown key.*Did you mean 'extractor'\?"),
        ({"metrics.fid.statistics.sha": "x"}, r"metrics\.fid\.statistics\.sha: unknown key.*'sha256'\?"),
        ({"metrics.fdi": {}}, r"metrics: unknown metric 'fdi'\. Did you mean 'fid'\?"),
        ({"metrics.fid": 3}, r"metrics\.fid: not a mapping \(found 3\)"),
        ({"metrics": {}}, r"metrics: .*at least 1"),
        ({"metrics": 3}, r"metrics: not a mapping \(found 3\)"),
        ({"name": "x"}, r"name: unknown key\. The name of a protocol is that of its file"),
        ({"n": "DELETE"}, r"n: a key is missing"),
        ({"n": "30000"}, r"n: not a whole number \(found '30000'\)"),
        ({"n": 0}, r"n: not above 0"),
        ({"metrics.inception_score.shuffle_seed": -1}, r"inception_score\.shuffle_seed: .*-1"),
        ({"n": True}, r"n: not a whole number"),
        ({"n": 30001}, r"n is 30001, but there are only 30000 prompts"),
        ({"prompts.sha256": "48ee"}, r"prompts\.sha256: .*\(found '48ee'\)"),
        ({"prompts.kind": "txt"}, r"prompts\.kind: unknown value \(found 'txt'\)\. Take one of: csv, scenes"),
        ({"seeds.device": "tpu"}, r"seeds\.device: .*\(found 'tpu'\)"),
        ({"sampling.guidance": float("nan")}, r"sampling\.guidance: .*NaN"),
        ({"sampling.resolution": 500}, r"sampling\.resolution: .*multiple of 8"),
        ({"sampling.dtype": "fp16"}, r"sampling\.dtype: .*\(found 'fp16'\)"),
        ({"sampling.scheduler": "pndm"}, r"sampling\.scheduler: .*\(found 'pndm'\)"),
        (
            {"sampling.scheduler": {"name": "DDIMScheduler", "must_be": "DDIMScheduler"}},
            r"sampling\.scheduler|must_be is for the checkpoint's own",
        ),
        ({"image.0.resize": 256}, r"image\[0\]\.jpeg: two steps in one entry"),
        ({"image.0.jpeg": 101}, r"image\[0\]\.jpeg: .*\(found 101\)"),
        ({"margins.kid": 0.1}, r"margin of 'kid', which is not a metric of this protocol"),
        ({"margins.fid": 0}, r"margins\.fid: not above 0"),
    ],
)
def test_a_broken_protocol_names_file_key_and_remedy(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ProtocolError, match=message) as caught:
        load_protocol(edited(tmp_path, changes))
    assert "own.yaml" in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a protocol is a mapping of keys \(found 'NoneType'\)"),
        (b"- 1\n", r"found 'list'"),
        (b"n: [1\n", r"line 2: .*not valid YAML"),
        (b"n: 1\nn: 2\n", r"line 2: .*a key stands twice.*'n'"),
        (b"n: !!python/object/apply:os.getcwd []\n", r"not valid YAML"),
        ("title: é".encode("latin-1"), "not UTF-8"),
        (None, r"no such protocol file.*Known names: coco30k-bksdm"),
    ],
)
def test_a_file_that_is_no_protocol_says_so(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ProtocolError, match=message):
        load_protocol(path)
    with pytest.raises(ProtocolError, match="cannot be read"):
        load_protocol(tmp_path)
    with pytest.raises(ProtocolError, match=r"found 'coco30k'.*Did you mean 'coco30k-bksdm'"):
        load_protocol("coco30k")
