"""A plan says what a run costs, and every figure is held against what really happens."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file

from pytest_sdbench.base.errors import CardError, ProtocolError
from pytest_sdbench.base.paths import reference
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.cards.card import read_card
from pytest_sdbench.cards.network import Network
from pytest_sdbench.commands import plan_time as pace
from pytest_sdbench.commands.main import main
from pytest_sdbench.commands.plan import report
from pytest_sdbench.commands.plan_cost import Plan, plan
from pytest_sdbench.commands.plan_time import Stopwatch, samples_per_image, time_unet, unet_calls
from pytest_sdbench.evaluation.evaluate import evaluate
from pytest_sdbench.evaluation.evidence import make_evidence
from pytest_sdbench.evaluation.job import Extras
from pytest_sdbench.models.checkpoint import Checkpoint
from pytest_sdbench.models.pipeline import load_pipeline
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.protocol import Protocol
from tests.models.original_layout import original_tensors
from tests.project import IMAGES, make_card, make_project, make_protocol
from tests.tiny_checkpoint import UNET, make_consistency_unet

pytestmark = pytest.mark.usefixtures("one_thread")

CARDS = reference() / "cards"


@pytest.fixture(autouse=True)
def lonely_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Find nothing in the hub's cache of this machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)


def make(card: Path, store: Path, n: int) -> Any:
    """Make the first n images of the project's card."""
    found = read_card(card)
    checkpoint = Checkpoint("./mini-sd", card.parent / "mini-sd")
    protocol = load_protocol("mini", search=(found.path.parent,)).with_samples(n)
    return make_evidence(checkpoint, protocol, Workspace(store, progress=False)).evidence


@pytest.fixture(scope="module")
def made(pristine_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a project of which 64 images are made; such projects share it by content."""
    root = tmp_path_factory.mktemp("made")
    make(make_project(root, pristine_checkpoint), root / "store", 64)
    return root / "store"


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """A copy of that store."""
    return Path(shutil.copytree(made, tmp_path / "store"))


@pytest.fixture
def card(tmp_path: Path, pristine_checkpoint: Path) -> Path:
    return make_project(tmp_path, pristine_checkpoint)


def untimed(card: Path, store: Path | str, **options: Any) -> Plan:
    return plan([card], Workspace(store), timing=False, **options)


def protocol_of(folder: Path, name: str = "own", **sampling: Any) -> Protocol:
    base: dict[str, Any] = {"steps": 25, "guidance": 2.0, "resolution": 64, "dtype": "float32"}
    return load_protocol(make_protocol(folder / f"{name}.yaml", sampling=base | sampling))


class OfLimitedMemory(torch.nn.Module):
    """A network that has memory for so many samples at once."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self._most = most

    def forward(self, sample: torch.Tensor, **_: Any) -> None:
        """Count the samples."""
        self.sizes.append(len(sample))
        if len(sample) > self._most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.fixture(scope="module")
def network(pristine_checkpoint: Path) -> Network:
    checkpoint = Checkpoint("tiny", pristine_checkpoint)
    return Network(checkpoint.unet_config, checkpoint)


class TestCounts:
    def test_what_is_in_the_store_need_not_be_made(self, tmp_path, card, store):
        empty = tmp_path / "empty"
        (before,) = untimed(card, empty).rows
        assert (before.images, before.missing, before.looked) == (IMAGES, IMAGES, True)
        assert not empty.exists()
        (part,) = untimed(card, empty, images=40).rows
        assert (part.images, part.missing) == (40, 40)
        (between,) = untimed(card, store).rows
        assert between.missing == IMAGES - 64
        done = untimed(card, store, images=64)
        assert (done.missing, done.seconds, done.bytes) == (0, 0, 0)
        assert "No image is to be made" in report(done)
        # Without timing only the store knows a time.
        unknown = untimed(card, empty)
        assert unknown.seconds is None
        assert "not known" in report(unknown)

    @pytest.mark.slow
    def test_protocols_that_share_images_are_counted_once(self, tmp_path):
        found = untimed(CARDS / "scenes-sd.md", tmp_path)
        counts = [(row.protocol, row.missing) for row in found.rows]
        assert counts == [("scenes-quick", 512), ("scenes-5k", 5000)]
        assert found.missing == 5000
        assert found.bytes == found.rows[1].bytes
        # A protocol can be named in place of the card's own.
        found = untimed(CARDS / "scenes-sd.md", tmp_path, protocols=["scenes-30k"])
        assert [(row.protocol, row.missing) for row in found.rows] == [("scenes-30k", 30_000)]

    def test_a_damaged_shard_is_to_be_made_again_and_told(self, card, store):
        (shard,) = store.glob("*/*.safetensors")
        shard.write_bytes(shard.read_bytes()[:-1])
        found = untimed(card, store)
        assert found.missing == IMAGES
        assert shard.name in " ".join(found.warnings)
        assert shard.name in report(found)


PAIRS: dict[str, Any] = {"metrics": {"psnr": {"extractor": "psnr"}}, "margins": {"psnr": 60}}


class TestReference:
    """Pictures that others are compared with are drawn, too."""

    @pytest.fixture
    def pairs(self, card: Path) -> Path:
        make_protocol(card.parent / "protocols/mini.yaml", n=70, **PAIRS)
        make_card(card, claims={"psnr": 100}, baseline="other")
        make_card(card.with_name("other.md"), claims={})
        return card

    def test_a_baseline_is_drawn_once(self, pairs, tmp_path):
        found = untimed(pairs, tmp_path / "store")
        own, beside = found.rows
        assert (own.card, own.missing, own.beside) == ("mini", 70, "")
        assert (beside.card, beside.missing, beside.beside) == ("other", 70, "mini")
        # Here the two have one checkpoint, and so one draw.
        assert found.missing == 70
        assert (beside.pictures, beside.bytes > 0) == (70, True)
        lines = [line.split() for line in report(found).splitlines()]
        assert ["+", "other", "mini", "70", "0", "70"] in [line[:6] for line in lines]

    def test_the_figure_is_what_a_run_makes(self, pairs, tmp_path, pristine_checkpoint):
        other = shutil.copytree(pristine_checkpoint, tmp_path / "candidate")
        config = json.loads((other / "unet/config.json").read_text(encoding="utf-8"))
        (other / "unet/config.json").write_text(json.dumps(config | {"norm_eps": 1e-3}), encoding="utf-8")
        make_card(pairs, claims={}, baseline="other")  # claims nothing beside it: its own is the reference
        found = untimed(pairs, tmp_path / "store", weights={"mini": other})
        assert [(row.card, row.missing) for row in found.rows] == [("mini", 70), ("mini", 70)]
        assert found.missing == 140
        protocol = load_protocol("mini", search=(pairs.parent,))
        made = evaluate(
            Checkpoint("new", other),
            protocol,
            Workspace(tmp_path / "store", progress=False),
            extras=Extras(original=lambda: Checkpoint("old", pairs.parent / "mini-sd")),
        )
        assert made.estimates.keys() == {"psnr"}
        assert sum(len(list(tmp_path.glob(f"store/*/{name}-0*"))) for name in ("pictures", "shard")) == 8
        sizes = [path.stat().st_size for path in tmp_path.glob("store/*/*") if path.suffix == ".safetensors"]
        assert found.bytes == pytest.approx(sum(sizes), abs=10_000)
        assert untimed(pairs, tmp_path / "store", weights={"mini": other}).missing == 0
        # What was compared before needs no picture; another metric of pairs needs those of the reference.
        own = Checkpoint("old", pairs.parent / "mini-sd").fingerprint
        for path in tmp_path.glob(f"store/{own}-*/pictures-*"):
            path.unlink()
        assert untimed(pairs, tmp_path / "store", weights={"mini": other}).missing == 0
        more = {"metrics": PAIRS["metrics"] | {"ssim": {"extractor": "ssim"}}, "margins": {}}
        make_protocol(pairs.parent / "protocols/mini.yaml", n=70, **more)
        rows = untimed(pairs, tmp_path / "store", weights={"mini": other}).rows
        assert [row.missing for row in rows] == [0, 70]

    @pytest.mark.parametrize(
        ("baseline", "scheduler", "words"),
        [
            (None, "PNDMScheduler", "no pairs of mini: the card names no baseline (mini)"),
            ("other", "LCMScheduler", "no pairs of mini: other has a PNDMScheduler, and the protocol"),
        ],
    )
    def test_where_nothing_is_compared_nothing_is_counted(self, pairs, tmp_path, baseline, scheduler, words):
        sampling = {"scheduler": {"name": "checkpoint", "must_be": scheduler}}
        base = {"steps": 2, "guidance": 1.0, "resolution": 64, "dtype": "float32"}
        make_protocol(pairs.parent / "protocols/mini.yaml", sampling=base | sampling, **PAIRS)
        make_card(pairs, claims={"psnr": 100}, **({"baseline": baseline} if baseline else {}))
        found = untimed(pairs, tmp_path)
        assert [row.card for row in found.rows] == ["mini"]
        assert words in report(found)

    def test_plan_and_doctor_name_a_baseline_that_is_not_here(self, pairs, tmp_path, capsys):
        make_card(pairs.with_name("other.md"), claims={}, checkpoint="nobody/nothing")
        found = untimed(pairs, tmp_path)
        assert [row.ready for row in found.rows] == [True, False]
        assert [list(users) for users in found.downloads.values()] == [["mini"]]
        assert main(["doctor", str(pairs)]) == 1
        assert "nobody/nothing" in capsys.readouterr().out

    @pytest.mark.slow
    def test_the_room_of_a_conversion_is_told(self, card, tmp_path, pristine_checkpoint):
        file = tmp_path / "all.safetensors"
        save_file(original_tensors(pristine_checkpoint), file)
        make_protocol(card.parent / "protocols/mini.yaml", n=70, **PAIRS)
        found = untimed(card, tmp_path / "store", weights={"mini": file})
        assert [row.beside for row in found.rows] == ["", "mini"]
        assert found.temporary_bytes > file.stat().st_size / 2
        assert "Converted weights take" in report(found)
        assert untimed(card, tmp_path / "store").temporary_bytes == 0


class TestDisk:
    @pytest.mark.slow
    def test_the_figure_is_the_size_of_the_folder_that_a_run_leaves(self, tmp_path, card):
        for n in (20, 80):  # a part of a shard; a whole one and a part
            store = tmp_path / f"store-{n}"
            planned = untimed(card, store, images=n)
            make(card, store, n)
            sizes = {file: file.stat().st_size for file in store.rglob("*") if file.is_file()}
            pictures = sum(sizes.pop(file) for file in store.rglob("*.tar"))
            assert planned.bytes == pytest.approx(sum(sizes.values()), rel=0.05)
            assert 0 < pictures <= planned.picture_bytes

    def test_kept_pictures_tell_what_others_take(self, store, card):
        (file,) = store.rglob("*.tar")

        def row(keep: int | str) -> Any:
            (found,) = plan([card], Workspace(store, keep_images=keep), timing=False).rows
            return found

        assert (row("auto").pictures, row("auto").picture_bytes) == (0, 0)
        assert (row("all").pictures, row("all").picture_basis) == (IMAGES - 64, "measured")
        assert row("all").picture_bytes == math.ceil((IMAGES - 64) * file.stat().st_size / 64)
        file.unlink()
        assert (row("all").pictures, row("all").missing) == (IMAGES, IMAGES)
        assert (row("all").picture_bytes, row("all").picture_basis) == (
            IMAGES * (3 * 64**2 + 2560),
            "estimated",
        )

    def test_pictures_of_weights_that_are_not_here_are_reckoned_by_their_pixels(self, tmp_path):
        found = untimed(CARDS / "bk-sdm-tiny.md", tmp_path)
        assert found.picture_bytes == 64 * (3 * 512**2 + 2560)
        assert "at most 50.5 MB of pictures beside it" in report(found)

    def test_wide_features_take_more(self, tmp_path):
        """Two front ends of Inception and a CLIP score: 2048 + 1008 + 1 numbers of four bytes an image."""
        found = untimed(CARDS / "bk-sdm-tiny.md", tmp_path)
        assert found.bytes == pytest.approx(30_000 * (4 * (2048 + 1008 + 1) + 18), rel=0.01)

    def test_a_disk_that_is_too_full_is_told(self, tmp_path, card, monkeypatch):
        found = untimed(card, tmp_path / "store")
        assert "WARNING" not in report(found)
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**6, 10**6 - 1000, 1000))
        assert "1 kB are free" in report(found)

    def test_of_a_store_behind_a_url_no_free_space_is_known(self, card):
        found = untimed(card, "memory://plan/store")
        assert found.missing == IMAGES
        assert "memory://plan/store cannot be known" in report(found)


class TestTime:
    @pytest.mark.parametrize(("steps", "guidance"), [(7, 2.0), (3, 1.0)])
    def test_calls_are_those_that_diffusers_makes(self, tmp_path, network, steps, guidance):
        protocol = protocol_of(tmp_path, steps=steps, guidance=guidance)
        seen = self._seen(load_pipeline(network.checkpoint), protocol)
        assert len(seen) == unet_calls(protocol, network)
        assert set(seen) == {samples_per_image(protocol, network.unet)}

    def test_a_consistency_model_is_called_once_a_step_without_a_second_half(
        self, tmp_path, pristine_checkpoint
    ):
        folder = make_consistency_unet(tmp_path / "lcm")
        checkpoint = Checkpoint("lcm", pristine_checkpoint, folder / "unet", folder / "scheduler")
        network = Network(checkpoint.unet_config, checkpoint)
        scheduler = {"name": "checkpoint", "must_be": "LCMScheduler"}
        protocol = protocol_of(tmp_path, steps=4, guidance=8.0, scheduler=scheduler)
        assert self._seen(load_pipeline(checkpoint), protocol) == [1] * 4
        assert unet_calls(protocol, network) == 4
        assert samples_per_image(protocol, network.unet) == 1

    def _seen(self, pipeline: Any, protocol: Protocol) -> list[int]:
        """Draw one image with diffusers and return the batch of each U-Net call."""
        seen: list[int] = []
        pipeline.unet.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
        sampling = protocol.sampling
        pipeline("red", num_inference_steps=sampling.steps, guidance_scale=sampling.guidance)
        return seen

    def test_pndm_takes_a_call_more_than_steps_with_and_without_a_checkpoint(self, network):
        protocol = load_protocol("coco30k-bksdm")
        assert unet_calls(protocol, network) == 26
        assert unet_calls(protocol, Network("bk-sdm-small", None)) == 26

    @pytest.mark.slow
    def test_time_grows_with_steps_guidance_and_images(self, tmp_path, network, monkeypatch):
        """One timing of the U-Net: what differs is how often it is called."""
        monkeypatch.setattr(pace, "time_unet", lambda *_, **__: 0.01)
        watch = Stopwatch("cpu")

        def seconds(**sampling: Any) -> float:
            return watch.seconds_per_image(protocol_of(tmp_path, **sampling), network)

        once = seconds(steps=9, guidance=1.0)
        # 10 and 20 calls, 10 of them doubled; decoding is in each once.
        assert seconds(steps=19, guidance=1.0) - once == pytest.approx(0.01 * 10 * (1 + pace.ALLOWANCE))
        assert seconds(steps=9, guidance=2.0) - once == pytest.approx(0.01 * 10 * (1 + pace.ALLOWANCE))
        assert once > 0.01 * 10
        card = make_project(tmp_path, network.checkpoint.folder)
        few, all_ = (plan([card], Workspace(tmp_path), images=n) for n in (26, IMAGES))
        assert all_.seconds == pytest.approx(few.seconds * IMAGES / 26)

    def test_a_network_is_timed_once_for_all_cards_and_told_before(self, tmp_path, card):
        other = make_card(card.with_name("other.md"))
        told: list[str] = []
        rows = plan([card, other], Workspace(tmp_path), images=4, tell=told.append).rows
        assert len(told) == 1
        assert [row.basis for row in rows] == ["estimated"] * 2
        assert rows[0].seconds_per_image == rows[1].seconds_per_image > 0

    def test_what_a_run_wrote_down_counts_more_than_a_timing(self, card, store):
        evidence = make(card, store, 64)
        told: list[str] = []
        (row,) = plan([card], Workspace(store), tell=told.append).rows
        assert (row.basis, row.seconds_per_image) == ("measured", evidence.pace())
        evidence.keep_pace(7.5)
        (row,) = plan([card], Workspace(store), tell=told.append).rows
        assert row.seconds == 7.5 * (IMAGES - 64)
        assert not told

    @pytest.mark.slow
    def test_half_precision_on_a_cpu_is_timed_in_full_and_called_the_least(self, tmp_path, card):
        sampling = {"steps": 2, "guidance": 1.0, "resolution": 64, "dtype": "float16"}
        make_protocol(card.parent / "protocols" / "mini.yaml", sampling=sampling)
        found = plan([card], Workspace(tmp_path), images=4)
        assert found.rows[0].timed_in == "float32"
        assert re.search(r">\d+ seconds", report(found))
        told = plan([card], Workspace(tmp_path, dtype="float32"), images=4)
        assert told.rows[0].timed_in == ""
        assert told.rows[0].draw != found.rows[0].draw

    def test_a_batch_that_does_not_fit_is_halved(self, monkeypatch):
        network = OfLimitedMemory(most=20)
        monkeypatch.setattr(pace, "unet_skeleton", lambda *_, **__: network)
        time_unet(UNET, batch=64, workers=1, device="cpu", dtype="float32")
        assert network.sizes == [64, 32, 16, 16]

    @pytest.mark.slow
    def test_a_network_that_does_not_fit_at_all_leaves_a_row_without_a_time(
        self, tmp_path, card, monkeypatch
    ):
        monkeypatch.setattr(pace, "unet_skeleton", lambda *_, **__: OfLimitedMemory(most=0))
        found = plan([card], Workspace(tmp_path))
        assert found.seconds is None
        assert "out of memory" in report(found)

    def test_steps_that_a_scheduler_cannot_take_name_the_protocol(self, tmp_path):
        protocol = protocol_of(tmp_path, steps=90, scheduler={"name": "LCMScheduler"})
        with pytest.raises(ProtocolError, match=r"own\.yaml: sampling\.steps"):
            unet_calls(protocol, Network("bk-sdm-tiny-lcm", None))


class TestLacking:
    def test_a_broken_card_does_not_end_the_plan(self, tmp_path, card, capsys):
        broken = make_card(card.with_name("broken.md"), claims={"clip_score": 29.0})
        assert main(["plan", str(broken), str(card), "--store", str(tmp_path), "--no-timing"]) == 1
        text = capsys.readouterr().out
        lines = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
        assert lines["broken"][-1] == "no"
        assert lines["mini"][-1] == "yes"
        assert "29.0" in text

    def test_damaged_weights_a_file_for_a_store_and_no_architecture_are_told_beside_the_counts(
        self, tmp_path, card
    ):
        whole = untimed(card, card)
        assert {finding.need for finding in whole.rows[0].unfetched} == {"store"}
        weights = card.parent / "mini-sd" / "unet" / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        found = plan([card], Workspace(tmp_path / "store"))
        (row,) = found.rows
        assert (row.ready, row.looked, row.missing, row.seconds) == (False, False, IMAGES, None)
        text = report(found)
        assert weights.name in text
        assert "sdbench.architecture" in text

    def test_downloads_are_sized_by_the_architecture_and_counted_once(self, tmp_path):
        cards = [CARDS / "bk-sdm-small.md"]
        again = make_card(
            tmp_path / "again.md",
            claims={"fid": 17.0},
            protocol="coco5k",
            margins={"fid": 0.4},
            checkpoint=read_card(cards[0]).checkpoint,
            architecture="bk-sdm-small",
        )
        found = plan([*cards, again], Workspace(tmp_path), timing=False)
        sizes = {download.what: download.size for download in found.downloads}
        weights = 4 * (482_346_884 + 123_060_480 + 83_653_863)
        assert sizes[read_card(cards[0]).checkpoint] == weights
        assert found.download_bytes == sum(sizes.values())
        # open_clip's ViT-g-14 has 1.37 billion parameters; the two front ends of Inception share one file.
        assert sizes["open_clip:ViT-g-14/laion2b_s34b_b88k"] == pytest.approx(5.47e9, rel=0.01)
        assert len(sizes) == 3
        assert all(users == ["bk-sdm-small", "again"] for users in found.downloads.values())
        text = report(found)
        assert "metadata.csv" in text  # nobody sends that
        assert not found.ready

    def test_weights_that_are_given_are_not_downloaded(self, tmp_path, pristine_checkpoint):
        card = CARDS / "bk-sdm-small.md"
        found = untimed(card, tmp_path, weights={"bk-sdm-small": pristine_checkpoint}, images=64)
        assert not [download for download in found.downloads if download.need == "weights"]
        assert found.rows[0].looked
        with pytest.raises(CardError, match="bk-sdm-tall"):
            untimed(card, tmp_path, weights={"bk-sdm-tall": pristine_checkpoint})

    def test_a_card_whose_claims_state_no_protocol_has_nothing_to_make(self, tmp_path):
        found = untimed(CARDS / "tiny-sd-lcm-6400.md", tmp_path)
        assert found.missing == 0
        assert "Judged by no protocol" in report(found)

    LACKING: ClassVar = {
        "a hub card without a protocol": {"claims": {}, "protocols": [], "checkpoint": "nobody/nothing"},
        "no checkpoint": {"claims": {}, "checkpoint": None, "architecture": "bk-sdm-tiny"},
        "a folder that is not there": {"checkpoint": "./nowhere"},
        "an extractor that is none": {"claims": {}, "protocols": ["unheard"]},
        "a protocol that is broken": {"claims": {}, "protocols": ["broken", "mini"]},
        "extractors and prompts": {"claims": {}, "protocols": ["coco5k"], "checkpoint": "nobody/nothing"},
        "nothing": {},
    }

    @pytest.mark.parametrize("about", LACKING.values(), ids=LACKING)
    def test_plan_and_doctor_find_the_same(self, tmp_path, card, about, capsys):
        other = make_card(card.with_name("other.md"), **about)
        (card.parent / "protocols" / "broken.yaml").write_text("n: 0")
        make_protocol(card.parent / "protocols/unheard.yaml", metrics={"fid": {"extractor": "nobody"}})
        doctor = main(["doctor", str(other)])
        told = capsys.readouterr().out
        made = main(["plan", str(other), "--store", str(tmp_path), "--no-timing"])
        text = capsys.readouterr().out
        assert doctor == made == int(about != {})
        assert ("Nothing is missing" in text) is ("Nothing is missing" in told) is (about == {})
        # What the hub has is offered by both, and by neither what nobody can fetch.
        assert ("--sdbench-download" in text) is ("--sdbench-download" in told)


class TestCommand:
    def test_figures_are_written_and_read_back(self, tmp_path, card, store, capsys):
        out = tmp_path / "plan.json"
        assert main(["plan", str(card), "--store", str(store), "--json", str(out)]) == 0
        assert "Nothing is missing" in capsys.readouterr().out
        found = json.loads(out.read_text(encoding="utf-8"))
        (row,) = found["rows"]
        assert (row["card"], row["protocol"], row["basis"]) == ("mini", "mini", "measured")
        assert (row["images"], row["images_in_store"], row["images_to_make"]) == (IMAGES, 64, IMAGES - 64)
        made = untimed(card, store)
        assert found["totals"] == {
            "images_to_make": made.missing,
            "seconds": made.seconds,
            "evidence_bytes": made.bytes,
            "picture_bytes": made.picture_bytes,
            "temporary_bytes": 0,
            "download_bytes": 0,
        }

    @pytest.mark.slow
    def test_the_table_fits_in_a_terminal_of_110_columns(self, tmp_path, capsys):
        names = ("stable-diffusion-v1-4", "scenes-portrait", "tiny-sd-lcm-6400")
        cards = [str(CARDS / f"{name}.md") for name in names]
        assert main(["plan", *cards, "--store", str(tmp_path), "--no-timing"]) == 1
        out = capsys.readouterr().out
        # Remedies are commands: they are not broken.
        lines = out.partition("To be placed")[0].splitlines()
        assert max(map(len, lines)) <= 110
        assert all(name in out for name in names)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--images", "0"], "--images"),
            (["--weights", "a=b", "--weights", "a=c"], "given twice"),
            (["--device", "cuda:99"], "--device cuda:99"),
        ],
    )
    def test_what_makes_no_sense_is_named(self, words, message, capsys):
        assert main(["plan", str(CARDS / "scenes-sd.md"), *words]) == 2
        assert message in capsys.readouterr().err

    def test_a_checkpoint_without_a_card_is_no_argument(self, capsys):
        with pytest.raises(SystemExit, match="2"):
            main(["plan", "--weights", "scenes-sd"])
        assert "argument --weights: found 'scenes-sd'; give CARD=PATH" in capsys.readouterr().err
