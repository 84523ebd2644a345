"""What a call takes on a device is measured, recorded in cards, and judged on that device alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pytest_sdbench.card import DeviceRecord, read_card, write_records
from pytest_sdbench.cli import main
from pytest_sdbench.compute import unet_macs
from pytest_sdbench.device import fastest, measure
from pytest_sdbench.environment import device_name
from pytest_sdbench.errors import CardError
from tests.project import make_card, make_project
from tests.tiny_checkpoint import UNET

HERE = f"{device_name('cpu')}, {torch.get_num_threads()} threads"


def record(batch: int = 1, seconds: float = 1.0, **changed: object) -> DeviceRecord:
    figures = {"samples_per_second": batch / seconds, "macs_per_second": 1e9 * batch / seconds}
    place = {"device": HERE, "dtype": "float32", "mode": "eager"}
    return DeviceRecord(**{**place, "batch": batch, "seconds": seconds, **figures, **changed})  # type: ignore[arg-type]


class TestBatch:
    """A call of one sample, and the batch of most samples a second."""

    def search(self, seconds: dict[int, float], largest: int = 64) -> list[int]:
        """Search where batches take these seconds; a batch without a time does not fit."""

        def call(batch: int) -> DeviceRecord:
            if batch not in seconds:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return record(batch, seconds[batch])

        return [found.batch for found in fastest(call, largest)]

    def test_it_grows_while_a_sample_gets_faster(self) -> None:
        assert self.search({1: 1.0, 2: 1.2, 4: 1.5, 8: 3.0, 16: 0.001}) == [1, 4]

    def test_it_ends_where_memory_does(self) -> None:
        assert self.search({1: 1.0, 2: 1.0}) == [1, 2]

    def test_it_is_no_larger_than_was_asked_for(self) -> None:
        assert self.search({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}, largest=4) == [1, 4]

    def test_one_sample_may_be_the_fastest(self) -> None:
        assert self.search({1: 1.0, 2: 2.5}) == [1]

    def test_what_is_no_lack_of_memory_is_told(self) -> None:
        def broken(batch: int) -> DeviceRecord:
            raise RuntimeError("a kernel is missing")

        with pytest.raises(RuntimeError, match="a kernel is missing"):
            fastest(broken, 64)


@pytest.fixture
def card(tmp_path: Path) -> Path:
    return make_card(
        tmp_path / "one.md", claims={}, protocol="scenes-quick", checkpoint="nobody/none", architecture=UNET
    )


def test_cards_of_one_network_are_measured_once(card: Path) -> None:
    other = make_card(
        card.parent / "two.md",
        claims={},
        protocol="scenes-quick",
        checkpoint="nobody/none",
        architecture=UNET,
    )
    (found,) = measure([read_card(card), read_card(other)], device="cpu", seconds=0.01, largest=2)
    assert found.cards == ("one", "two")
    assert found.problems == ()
    for each in found.records:
        assert each.seconds > 0
        assert each.samples_per_second == pytest.approx(each.batch / each.seconds)
        assert each.macs_per_second == pytest.approx(unet_macs(UNET).total * each.batch / each.seconds)
        # No allocator counts what torch holds on a CPU.
        assert (each.device, each.dtype, each.mode, each.peak_bytes) == (HERE, "float32", "eager", None)


def test_what_does_not_run_is_told_and_the_rest_is_measured(
    card: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(self: torch.nn.Module, **_: object) -> None:
        raise RuntimeError("no C++ compiler\nand much more")

    monkeypatch.setattr(torch.nn.Module, "compile", no_compiler)
    (found,) = measure([read_card(card)], device="cpu", modes=("compiled", "eager"), seconds=0.01, largest=1)
    assert found.problems == ("one: does not run in float32, compiled: no C++ compiler",)
    assert [each.mode for each in found.records] == ["eager"]


def test_the_command_shows_and_records(card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["device", str(card), "--device=cpu", "--seconds=0.01", "--largest-batch=1"]
    before = card.read_text(encoding="utf-8")
    assert main(words) == 0
    assert HERE in capsys.readouterr().out
    assert card.read_text(encoding="utf-8") == before
    assert main([*words, "--update"]) == 0
    assert "+  devices:" in capsys.readouterr().out
    (first,) = read_card(card).devices
    assert main([*words, "--update"]) == 0
    (second,) = read_card(card).devices
    assert first.key == second.key == (HERE, "float32", "eager", "1")
    capsys.readouterr()
    assert main(["table", str(card)]) == 0
    table = capsys.readouterr().out
    assert f"One U-Net call on {HERE}" in table
    assert f"{second.seconds:.3g}" in table


def test_a_record_takes_the_place_of_its_like_alone(card: Path) -> None:
    write_records(card, [record(), record(batch=8), record(dtype="bfloat16"), record(mode="compiled")])
    assert [each.key[1:] for each in read_card(card).devices] == [
        ("float32", "eager", "1"),
        ("float32", "eager", "8"),
        ("bfloat16", "eager", "1"),
        ("float32", "compiled", "1"),
    ]
    write_records(card, [record(batch=8, seconds=0.5, peak_bytes=12345678, versions={"torch": "2.15.0"})])
    found = read_card(card).devices
    assert [each.seconds for each in found] == [1.0, 0.5, 1.0, 1.0]
    assert (found[1].peak_bytes, found[1].versions) == (12345678, {"torch": "2.15.0"})
    assert read_card(card).records == ()


def test_a_card_with_the_same_call_twice_is_broken(tmp_path: Path) -> None:
    entry = record().to_dict()
    path = make_card(tmp_path / "c.md", claims={}, protocol="scenes-quick", devices=[entry, entry])
    with pytest.raises(
        CardError, match=r"sdbench\.devices\[1\].*recorded twice|recorded twice.*devices\[1\]"
    ):
        read_card(path)


def test_a_mode_that_does_not_exist_is_named(tmp_path: Path) -> None:
    entry = record().to_dict() | {"mode": "fast"}
    path = make_card(tmp_path / "c.md", claims={}, protocol="scenes-quick", devices=[entry])
    with pytest.raises(CardError, match=r"(?s)devices.*mode.*fast"):
        read_card(path)


class TestVerdict:
    """Nothing here asserts a time: what is recorded is far off either way."""

    @pytest.fixture
    def speed(self, pytester: pytest.Pytester, pristine_checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
        # A run inside a worker of this run is none itself.
        monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
        make_project(pytester.path, pristine_checkpoint, claims={})

        def run(*records: DeviceRecord) -> tuple[str, str]:
            entries = [each.to_dict() for each in records]
            make_card(pytester.path / "cards" / "student.md", claims={}, devices=entries)
            words = ("--sdbench", "cards/student.md", "-m", "speed", "--sdbench-device=cpu")
            pytester.runpytest(*words, "--sdbench-report=r.json")
            (row,) = json.loads((pytester.path / "r.json").read_text(encoding="utf-8"))["results"]
            return row["verdict"], row["reason"]

        return run

    def test_a_latency_is_judged_by_the_record_of_this_device(self, speed) -> None:
        verdict, reason = speed(record(seconds=1000.0))
        assert verdict == "pass"
        assert "recorded 1000 s, margin 10%" in reason
        # Inconclusive where a machine is too slow for ten rounds.
        assert speed(record(seconds=1e-4))[0] in ("fail", "inconclusive")

    def test_another_device_precision_mode_or_batch_is_another_figure(self, speed) -> None:
        verdict, reason = speed(
            record(seconds=1e-4, device="Another Machine 9000"),
            record(seconds=1e-4, dtype="bfloat16"),
            record(seconds=1e-4, mode="compiled"),
            record(batch=2, seconds=1e-4),
        )
        assert verdict == "uncalibrated"
        assert "Another Machine 9000" in reason
        assert HERE in reason
