"""What a call takes on a device is measured, recorded in cards, and judged on that device alone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pytest_sdbench.base.environment import device_name, timed_on
from pytest_sdbench.base.errors import CardError
from pytest_sdbench.cards.card import DeviceRecord, read_card, write_records
from pytest_sdbench.cards.network import Network
from pytest_sdbench.commands.device import fastest, measure
from pytest_sdbench.commands.main import main
from pytest_sdbench.models.counts import unet_macs
from pytest_sdbench.suite import tests as suite
from tests.conftest import Speed
from tests.project import make_card
from tests.tiny_checkpoint import UNET


def record(batch: int = 1, seconds: float = 1.0, **changed: object) -> DeviceRecord:
    figures = {"samples_per_second": batch / seconds, "macs_per_second": 1e9 * batch / seconds}
    place = {"device": timed_on("cpu"), "dtype": "float32", "mode": "eager", "measures": "latency"}
    return DeviceRecord(**{**place, "batch": batch, "seconds": seconds, **figures, **changed})  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock of one's own: a timing elsewhere on the machine does not matter here."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


class TestBatch:
    """Latency is of one sample, throughput of the batch with most samples a second."""

    def search(self, seconds: dict[int, float], **options: bool) -> list[int]:
        """Search where batches take these seconds; one without a time does not fit, one of 0 s is broken."""

        def call(batch: int) -> DeviceRecord:
            if batch not in seconds:
                raise torch.OutOfMemoryError("CUDA out of memory")
            if not seconds[batch]:
                raise RuntimeError("a kernel is missing\nand more")
            return record(batch, seconds[batch])

        found, self.problem = fastest(call, [1, 2, 4, 8, 16], **options)
        assert [each.measures for each in found] == ["latency", "throughput"][: len(found)]
        return [each.batch for each in found]

    @pytest.mark.parametrize(
        ("seconds", "batches"),
        [
            ({1: 1.0, 2: 1.2, 4: 1.5, 8: 3.0, 16: 0.001}, [1, 4]),  # it grows while a sample gets faster
            ({1: 1.0, 2: 1.0}, [1, 2]),  # it ends where memory does
            ({size: 1.0 for size in (1, 2, 4, 8, 16, 32)}, [1, 16]),  # it is none that was not asked for
            ({1: 1.0, 2: 2.5}, [1, 1]),  # one sample may be the fastest
        ],
    )
    def test_it_grows_while_a_sample_gets_faster(self, seconds: dict[int, float], batches: list[int]) -> None:
        assert self.search(seconds) == batches
        assert self.problem == ""

    def test_what_is_no_lack_of_memory_is_told_and_what_ran_is_kept(self) -> None:
        assert self.search({1: 1.0, 2: 1.0, 4: 0.0}) == [1, 2]
        assert self.problem == "a batch of 4 does not run: a kernel is missing"
        assert self.search({1: 0.0}) == []
        assert self.problem == "a batch of 1 does not run: a kernel is missing"

    def test_a_batch_that_was_found_before_has_to_fit(self) -> None:
        assert self.search({1: 1.0}, growing=False) == [1, 1]
        assert self.problem == "a batch of 2 does not run: CUDA out of memory"


def network_card(path: Path, **block: object) -> Path:
    """Write a card of a network without a checkpoint, by default UNET."""
    about = {"checkpoint": "nobody/none", "architecture": UNET} | block
    return make_card(path, claims={}, protocol="scenes-quick", **about)


QUICKLY = ("--device=cpu", "--seconds=0.01", "--largest-batch=1")


@pytest.fixture
def card(tmp_path: Path) -> Path:
    return network_card(tmp_path / "one.md")


@pytest.mark.slow
def test_cards_of_one_network_are_measured_once(card: Path) -> None:
    other = network_card(card.parent / "two.md")
    cards = [read_card(card), read_card(other)]
    (found,) = measure(cards, device="cpu", seconds=0.01, largest=3)
    assert found.names == "one, two"
    assert found.problems == ()
    assert [each.measures for each in found.records] == ["latency", "throughput"]
    assert found.records[0].batch == 1
    assert found.records[1].batch in (1, 2)
    for each in found.records:
        assert each.seconds > 0
        assert each.samples_per_second == pytest.approx(each.batch / each.seconds)
        assert each.macs_per_second == pytest.approx(unet_macs(UNET).total * each.batch / each.seconds)
        # No allocator counts what torch holds on a CPU.
        assert (each.device, each.dtype, each.mode) == (timed_on("cpu"), "float32", "eager")
        assert each.peak_bytes is None


@pytest.mark.slow
def test_what_does_not_run_is_told_and_the_rest_is_measured(
    card: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(self: torch.nn.Module, **_: object) -> None:
        raise RuntimeError("no C++ compiler\nand much more")

    monkeypatch.setattr(torch.nn.Module, "compile", no_compiler)
    (found,) = measure([read_card(card)], device="cpu", modes=("compiled", "eager"), seconds=0.01, largest=1)
    assert found.problems == ("one: float32, compiled, a batch of 1 does not run: no C++ compiler",)
    assert [each.mode for each in found.records] == ["eager", "eager"]


@pytest.mark.slow
def test_the_compiled_network_runs_the_batch_that_was_found(
    card: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda model, **_: compiled.append(model))
    (found,) = measure([read_card(card)], device="cpu", modes=("compiled", "eager"), seconds=0.01, largest=2)
    best = found.records[1].batch
    assert [(each.mode, each.measures) for each in found.records] == [
        (mode, figure) for mode in ("eager", "compiled") for figure in ("latency", "throughput")
    ]
    assert len(compiled) == best  # one, or one and two


@pytest.mark.slow
def test_a_batch_that_is_given_is_not_looked_for(card: Path) -> None:
    (found,) = measure([read_card(card)], device="cpu", seconds=0.01, largest=64, batch=3)
    assert {each.batch for each in found.records} <= {1, 3}


@pytest.mark.slow
def test_the_command_shows_and_records(card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["device", str(card), *QUICKLY]
    here, before = timed_on("cpu"), card.read_text(encoding="utf-8")
    assert main(words) == 0
    assert here in capsys.readouterr().out
    assert card.read_text(encoding="utf-8") == before
    for added in (True, False):
        assert main([*words, "--update"]) == 0
        assert ("+  devices:" in capsys.readouterr().out) is added
        devices = read_card(card).devices
        assert [each.key for each in devices] == [
            (here, "float32", "eager", measures) for measures in ("latency", "throughput")
        ]
    assert main(["table", str(card)]) == 0
    table = capsys.readouterr().out
    assert f"One U-Net call on {here}" in table
    assert f"{devices[0].seconds:.3g}" in table


@pytest.mark.slow
def test_cards_of_one_name_keep_their_own_figures(card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    narrow = UNET | {"layers_per_block": 1}
    other = network_card(card.parent / "beside" / card.name, architecture=narrow)
    assert main(["device", str(card), str(other), *QUICKLY, "--update"]) == 0
    assert "| beside/one " in capsys.readouterr().out
    for path, network in ((card, UNET), (other, narrow)):
        latency = read_card(path).devices[0]
        macs = latency.macs_per_second * latency.seconds
        assert macs == pytest.approx(unet_macs(network).total, rel=2e-3)  # four digits are recorded


@pytest.mark.slow
def test_a_card_that_cannot_be_written_leaves_the_others(
    card: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = network_card(card.parent / "two.md")
    network_card(card, devices=[])
    text = card.read_text(encoding="utf-8")
    assert "devices: []" in text
    text = text.replace("devices: []", "devices: *none").replace("---\n", "---\ntags: &none []\n", 1)
    card.write_text(text, encoding="utf-8")
    assert main(["device", str(card), str(other), *QUICKLY, "--update"]) == 1
    assert "edited in place" in capsys.readouterr().err
    assert read_card(card).devices == ()
    assert len(read_card(other).devices) == 2


def test_a_record_takes_the_place_of_its_like_alone(card: Path) -> None:
    write_records(
        card,
        [record(), record(batch=8, measures="throughput"), record(dtype="bfloat16"), record(mode="compiled")],
    )
    assert [each.key[1:] for each in read_card(card).devices] == [
        ("float32", "eager", "latency"),
        ("float32", "eager", "throughput"),
        ("bfloat16", "eager", "latency"),
        ("float32", "compiled", "latency"),
    ]
    faster = record(
        batch=16, seconds=0.5, measures="throughput", peak_bytes=12345678, versions={"torch": "2.15.0"}
    )
    write_records(card, [faster])
    found = read_card(card).devices
    assert [(each.batch, each.seconds) for each in found] == [(1, 1.0), (16, 0.5), (1, 1.0), (1, 1.0)]
    assert found[1] == faster
    assert read_card(card).records == ()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ([{}, {}], r"sdbench\.devices\[1\].*recorded twice|recorded twice.*devices\[1\]"),
        ([{"mode": "fast"}], r"(?s)devices.*mode.*fast"),
    ],
)
def test_a_call_that_is_there_twice_or_of_no_mode_is_named(
    tmp_path: Path, changes: list[dict[str, str]], told: str
) -> None:
    entries = [record().to_dict() | change for change in changes]
    path = make_card(tmp_path / "c.md", claims={}, protocol="scenes-quick", devices=entries)
    with pytest.raises(CardError, match=told):
        read_card(path)


class TestVerdict:
    """Nothing here asserts a time: what is recorded is far off either way."""

    @pytest.fixture
    def judge(self, speed: Speed) -> Callable[..., tuple[str, str]]:
        def run(*records: DeviceRecord) -> tuple[str, str]:
            _, row = speed("--sdbench-device=cpu", devices=[each.to_dict() for each in records])
            return row["verdict"], row["reason"]

        return run

    @pytest.mark.slow
    def test_a_latency_is_judged_by_the_record_of_this_device(self, judge) -> None:
        verdict, reason = judge(record(seconds=1000.0, versions={"torch": "1.0"}))
        assert verdict == "pass"
        assert "recorded 1000 s, margin 10%" in reason
        assert "it was recorded with torch 1.0" in reason
        # Inconclusive where a machine is too slow for ten rounds.
        assert judge(record(seconds=1e-4))[0] in ("fail", "inconclusive")

    @pytest.mark.slow
    def test_another_device_precision_mode_or_batch_is_another_figure(self, judge) -> None:
        verdict, reason = judge(
            record(seconds=1e-4, device="Another Machine 9000"),
            record(seconds=1e-4, dtype="bfloat16"),
            record(seconds=1e-4, mode="compiled"),
            record(batch=2, seconds=1e-4, measures="throughput"),
        )
        assert verdict == "uncalibrated"
        here = timed_on("cpu")
        assert (
            f"a latency is recorded of Another Machine 9000, float32; {here}, bfloat16; "
            f"this is {here}, float32" in reason
        )

    @pytest.mark.parametrize(
        "elsewhere", [{}, {"memory": {"peak_bytes": {"max": 10**9, "device": "Another"}}}]
    )
    @pytest.mark.parametrize(("peak", "outcome"), [(100_000_000, "pass"), (103_000_000, "fail")])
    def test_a_peak_is_judged_by_the_record_of_this_device(
        self, peak: int, outcome: str, elsewhere: dict[str, object], tmp_path: Path, monkeypatch
    ) -> None:
        monkeypatch.setattr("pytest_sdbench.models.latency.peak_memory", lambda *_, **__: peak)
        entries = [record(peak_bytes=100_000_000).to_dict()]
        path = make_card(tmp_path / "c.md", claims={}, protocol="scenes-quick", devices=entries, **elsewhere)
        found = []
        suite.test_memory(
            read_card(path),
            Network(UNET, None),
            "cpu",
            "float32",
            {"device": device_name("cpu")},
            lambda verdict, **figures: found.append(verdict.outcome),
        )
        assert found == [outcome]
