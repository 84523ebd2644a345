"""The figures of a run over time: each with its interval, what fell first, and whatever a file holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_sdbench.report.history import Measurement
from pytest_sdbench.report.history import Run as Past
from pytest_sdbench.report.html import multiples
from pytest_sdbench.report.html.multiples import history_of
from pytest_sdbench.report.html.render import results_html
from pytest_sdbench.report.html.run import Run as Now
from pytest_sdbench.report.results import Row
from tests.report.pages import read, row


def scored(metric: str, value: float, card: str = "one", **values: object) -> Measurement:
    known = {"protocol": "p", "standard_error": 0.01, "n": 100, "draw": "d", "verdict": "pass"}
    return replace(Measurement(card, "quality", value, metric=metric), **known | values)


def past(*each: Measurement) -> tuple[Past, ...]:
    """Return a run a day, each of another checkpoint, of measurements that are given oldest first."""
    return tuple(
        Past(
            f"r{at}",
            f"2026-10-{at + 1:02}T10:00:00Z",
            (replace(one, checkpoint=f"{at:016}"),),
            {"commit": "c0ffee"},
        )
        for at, one in enumerate(each)
    )


def rows_of(*metrics: str, card: str = "one") -> list[Row]:
    return [
        row(
            node_id=f"../{card}.md::x",
            card=card,
            name=metric,
            metric=metric,
            protocol="p",
            measured=0.9,
            n=100,
            standard_error=0.01,
        )
        for metric in metrics
    ]


def test_each_point_has_its_interval_and_the_claim_its_margin() -> None:
    runs = past(scored("ssim", 0.9), scored("ssim", 0.8, standard_error=None, claimed=0.9, margin=0.05))
    found = history_of(rows_of("ssim"), runs)
    assert found is not None
    (plot,) = found.multiples
    first, last = plot.dots
    assert (plot.card, plot.title, plot.first, plot.last) == ("one", "SSIM ↑", "2026-10-01", "2026-10-02")
    assert (first.low, first.high) == (plot.y.at(0.9 - 0.0196), plot.y.at(0.9 + 0.0196))
    assert last.low == last.high == last.y == plot.y.at(0.8)
    assert (plot.claim, plot.edge) == (plot.y.at(0.9), plot.y.at(0.85))
    assert first.text == "2026-10-01 10:00 c0ffee: 0.9000 ± 0.0100, pass"


def test_a_share_stays_one() -> None:
    runs = past(scored("lost", 0.001), scored("lost", 0.999))
    found = history_of(rows_of("lost"), runs)
    assert found is not None
    (plot,) = found.multiples
    assert (plot.dots[0].low, plot.dots[1].high) == (plot.y.at(0.0), plot.y.at(1.0))


def test_what_fell_is_first_and_what_is_left_out_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = [
        scored("ssim", 0.9),
        scored("psnr", 30.0),
        scored("lost", 0.1),
        scored("ssim", 0.9, card="another"),
    ]
    latest = [
        scored("ssim", 0.8),
        scored("psnr", 20.0, verdict="fail"),
        scored("lost", 0.2),
        scored("fid", 1.0),
    ]
    runs = [
        Past(str(at), f"2026-10-0{at}T10:00:00Z", tuple(each)) for at, each in ((1, earlier), (2, latest))
    ]
    rows = rows_of("ssim", "psnr", "lost", "fid")
    for most, titles in ((24, ["PSNR ↑", "SSIM ↑", "Lost ↓"]), (2, ["PSNR ↑", "SSIM ↑"])):
        monkeypatch.setattr(multiples, "MOST", most)
        found = history_of(rows, runs)
        assert found is not None
        assert [plot.title for plot in found.multiples] == titles
        assert (found.runs, found.once, found.more) == (2, 1, 3 - len(titles))
    monkeypatch.setattr(multiples, "LATEST", 1)
    found = history_of(rows, runs)
    assert found is not None
    assert {(len(plot.dots), plot.earlier) for plot in found.multiples} == {(1, 1)}


@pytest.mark.parametrize("odd", [1e308, -1e200, 5e-324, 0.0])
def test_whatever_a_file_holds_is_drawn_or_left_out(odd: float) -> None:
    found = history_of(
        rows_of("ssim"), past(scored("ssim", odd), scored("ssim", 0.9, claimed=odd, margin=odd))
    )
    assert found is not None
    assert len(found.multiples) == (abs(odd) < 1e100)


def test_there_is_a_section_where_a_history_is_kept() -> None:
    rows, runs = rows_of("ssim"), past(scored("ssim", 0.9), scored("ssim", 0.8))
    assert "History" not in read(results_html([], rows)).text
    assert history_of([], runs) is None
    tags = read(results_html([], rows, Now(history=runs)))
    assert "2 runs, this one included" in tags.text
    assert sum("dot" in (each.get("class") or "").split() for tag, each in tags.elements if tag == "g") == 2
