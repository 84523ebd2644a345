"""Reference statistics: what is read, what is refused and what is made."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity.metric_fid import fid_features_to_statistics

from pytest_sdbench.base.errors import DataError, ProtocolError, Unavailable
from pytest_sdbench.base.paths import reference
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.features import references as statistics
from pytest_sdbench.features.definition import Extractor, FeatureNetwork
from pytest_sdbench.features.extractors import EXTRACTORS, open_extractor
from pytest_sdbench.features.references import (
    compute_statistics,
    describe,
    load_reference,
    load_references,
    make_statistics,
    reference_of,
    save_statistics,
)
from pytest_sdbench.features.scene_set import SceneSet
from pytest_sdbench.metrics.moments import FeatureStatistics
from pytest_sdbench.protocols import scenes
from pytest_sdbench.protocols.image_steps import resize
from pytest_sdbench.protocols.metric_specs import read_spec
from pytest_sdbench.protocols.sections import Jpeg, Resize
from tests.features.test_images import tarred, zipped

WIDTH = 6


def some(n: int = 40) -> FeatureStatistics:
    rows = np.random.default_rng(0).normal(size=(n, WIDTH))
    return FeatureStatistics(rows.mean(0), np.cov(rows, rowvar=False), n, rows[:10].astype(np.float32))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "statistics.npz"
    save_statistics(path, some(), {"made": "by a test"})
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rewrite(path: Path, **changes: Any) -> None:
    """Replace keys of an npz; None takes one out."""
    with np.load(path) as content:
        arrays = dict(content) | changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})


# --- reading ---


def test_what_was_written_is_read(file: Path) -> None:
    got, expected = load_reference(file, width=WIDTH), some()
    assert np.array_equal(got.mu, expected.mu)
    np.testing.assert_allclose(got.sigma, expected.sigma, rtol=1e-15)
    assert got.n == 40
    assert np.array_equal(got.features, expected.features)
    with np.load(file, allow_pickle=False) as content:
        assert json.loads(str(content["provenance"])) == {"made": "by a test"}


def test_the_right_checksum_is_accepted_and_another_refused(file: Path) -> None:
    right = sha256(file)
    assert load_reference(file, width=WIDTH, sha256=right).n == 40
    with pytest.raises(DataError, match=f"must be {'0' * 64} .found '{right}'"):
        load_reference(file, width=WIDTH, sha256="0" * 64)


def test_what_other_tools_add_to_such_a_file_does_not_matter(tmp_path: Path) -> None:
    """As pytorch-fid writes it, `np.savez(path, mu=mu, sigma=sigma)`, and with keys that are not ours."""
    rows = np.random.default_rng(1).normal(size=(40, WIDTH)).astype(np.float32)
    mu, sigma = np.mean(rows, axis=0), np.cov(rows, rowvar=False)
    np.savez(tmp_path / "plain.npz", mu=mu, sigma=sigma)
    np.savez_compressed(tmp_path / "more.npz", mu=mu, sigma=sigma, n=np.array([40]), act=rows, name="real")
    for name in ("plain.npz", "more.npz"):
        got = load_reference(tmp_path / name, width=WIDTH)
        assert np.array_equal(got.mu, mu.astype(np.float64))
        np.testing.assert_allclose(got.sigma, sigma, rtol=1e-12)
        assert (got.n, got.features) == (None, None)


def test_a_missing_file_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"nowhere\.npz.*python -m pytest_sdbench stats"):
        load_reference(tmp_path / "nowhere.npz", width=WIDTH)


def changed_at(*places: tuple[int, int], to: float) -> np.ndarray:
    """Return a covariance with other values in some places."""
    sigma = some().sigma.copy()
    for place in places:
        sigma[place] = to
    return sigma


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mu": None}, "mu: this key is missing"),
        ({"sigma": None}, "sigma: this key is missing"),
        ({"mu": np.zeros(5)}, r"mu: the extractor has 6 features, so the shape must be \[6\] .found \[5\]"),
        ({"sigma": np.zeros((6, 5))}, r"sigma: .*must be \[6, 6\] .found \[6, 5\]"),
        ({"sigma": changed_at((1, 2), (2, 1), to=np.nan)}, "sigma: NaN"),
        ({"mu": np.array(["a"] * 6)}, "mu: NaN, infinity or no numbers"),
        ({"sigma": changed_at((1, 2), to=1.0)}, "sigma: a covariance is symmetric"),
        ({"sigma": -np.eye(6)}, "variances of 0 or more"),
        ({"features": np.zeros((3, 5))}, r"features: must be \[M, 6\]"),
        ({"features": np.full((3, 6), np.inf)}, "features: NaN"),
    ],
)
def test_a_broken_file_names_key_and_remedy(file: Path, changes: dict[str, Any], message: str) -> None:
    rewrite(file, **changes)
    with pytest.raises(DataError, match=message) as raised:
        load_reference(file, width=WIDTH)
    assert str(file) in str(raised.value)
    assert raised.value.remedy


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def claiming(shape: tuple[int, ...], packed: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An npz whose mu says that it has this shape."""
    array, file = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(file, "w", packed) as archive:
        archive.writestr("mu.npy", array.getvalue())
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no npz of plain arrays"),
        (b"PK\x03\x04 cut short", "no npz of plain arrays"),
        (b"mu,sigma\n1,2\n", "no npz of plain arrays"),
        (npz(mu=np.array([{"a": 1}], dtype=object), sigma=np.eye(6)), "no npz of plain arrays"),
        (npy(np.zeros(3)), "one array"),
        (claiming((10**12,)), r"mu \[1000000000000\] and what is before it take more than 536,870,912 bytes"),
        (claiming((-1, -1)), r"mu \[-1, -1\] holds no numbers"),
        (claiming((6,), zipfile.ZIP_BZIP2), "mu is packed as numpy packs none"),
        (claiming((2**24,)), "no npz of plain arrays"),
        (
            npz(mu=np.zeros(6), sigma=np.eye(6), provenance=np.array("[" * 10**5)),
            "provenance: this is no JSON",
        ),
        (
            npz(mu=np.zeros(6), sigma=np.eye(6), provenance=np.array("5")),
            "provenance: this is no JSON object",
        ),
        (npz(mu=np.zeros(6), sigma=np.eye(6), n=np.array("many")), "n is no number of images"),
        (npz(mu=np.zeros(6), sigma=np.eye(6), n=np.array(np.inf)), "n is no number of images"),
    ],
    ids=["empty", "cut", "csv", "pickle", "npy", "bomb", "negative", "bz2", "short", "deep", "5", "n", "inf"],
)
def test_no_npz_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "statistics.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_reference(path, width=WIDTH)


def test_a_packed_file_is_read(file: Path) -> None:
    with np.load(file) as arrays:
        np.savez_compressed(file, **arrays)
    assert load_reference(file, width=WIDTH).n == 40


# --- what a protocol means ---


CAPTIONS = SimpleNamespace(kind="csv")


def a_protocol(
    folder: Path,
    *,
    images: int = 40,
    sha256: str | None = None,
    metrics: tuple[str, ...] = ("fid", "kid"),
    extractor: str = "net",
    prompts: Any = CAPTIONS,
) -> Any:
    file = {"file": "s.npz", "sha256": sha256, "images": images}
    entries = [{"metric": name, "extractor": extractor, "statistics": file} for name in metrics]
    entries.append({"metric": "clip_score", "model": "local:clip"})
    specs = {entry["metric"]: read_spec(entry) for entry in entries}
    return SimpleNamespace(
        path=folder / "p.yaml",
        image=(Jpeg(jpeg=75), Resize(resize=256, filter="pil-bicubic")),
        metrics=specs,
        prompts=prompts,
        locate=lambda file, root: None if root is None else root / file,
    )


@pytest.fixture
def data_root(file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    net = Extractor("net", {"features": WIDTH}, load=lambda name, **options: (colours, "of a test"))
    monkeypatch.setitem(EXTRACTORS._loaded, "net", net)
    file.rename(file.with_name("s.npz"))
    return file.parent


def test_each_file_is_read_once_for_all_metrics(data_root: Path) -> None:
    found = load_references(a_protocol(data_root), data_root)
    assert set(found) == {"fid", "kid"}
    assert found["fid"] is found["kid"]


def test_the_number_of_images_is_the_protocols(data_root: Path) -> None:
    with pytest.raises(DataError, match=r"n: the protocol's reference is 40,504 images.*found 40\)"):
        load_references(a_protocol(data_root, images=40504), data_root)


def test_kid_needs_features(data_root: Path) -> None:
    rewrite(data_root / "s.npz", features=None)
    assert set(load_references(a_protocol(data_root, metrics=("fid",)), data_root)) == {"fid"}
    with pytest.raises(DataError, match="KID needs features"):
        load_references(a_protocol(data_root), data_root)


def test_statistics_that_are_not_here_say_how_to_make_them(data_root: Path) -> None:
    protocol = a_protocol(data_root)
    lacking = load_references(protocol, None)
    assert set(lacking) == {"fid", "kid"}
    assert all("--sdbench-data" in str(reason) for reason in lacking.values())
    with pytest.raises(Unavailable, match="--sdbench-data"):
        reference_of(protocol, protocol.metrics["fid"], None)
    (data_root / "s.npz").unlink()
    command = "python -m pytest_sdbench stats IMAGES --extractor net --resize 256 --features 4096 --out"
    with pytest.raises(Unavailable, match=f"from 40 real images: {command} {data_root / 's.npz'}"):
        reference_of(protocol, protocol.metrics["fid"], data_root)


def test_an_unknown_extractor_is_refused(data_root: Path) -> None:
    protocol = a_protocol(data_root, extractor="other")
    with pytest.raises(ProtocolError, match="unknown extractor"):
        load_references(protocol, data_root)


def test_the_doctors_line_says_what_was_verified(data_root: Path) -> None:
    protocol = a_protocol(data_root)
    both = [protocol.metrics["fid"], protocol.metrics["kid"]]
    assert "40 images, no checksum is published" in describe(protocol, both, data_root)
    protocol = a_protocol(data_root, sha256=sha256(data_root / "s.npz"))
    assert "sha256 verified" in describe(protocol, [protocol.metrics["fid"]], data_root)
    rewrite(data_root / "s.npz", n=None)
    protocol = a_protocol(data_root)
    both = [protocol.metrics["kid"], protocol.metrics["fid"]]
    assert "number of images not recorded" in describe(protocol, both, data_root)
    rewrite(data_root / "s.npz", features=None)
    for order in (both, both[::-1]):
        with pytest.raises(DataError, match="KID needs features"):
            describe(protocol, order, data_root)


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({"extractor": "other"}, r"provenance\.extractor: .*another extractor than net .*'other'"),
        ({"steps": [{"resize": 64, "filter": "pil-bicubic"}]}, r"provenance\.steps: .*to 256.*found 64"),
    ],
)
def test_statistics_of_another_extractor_or_size_are_refused(
    data_root: Path, about: dict[str, Any], says: str
) -> None:
    rewrite(data_root / "s.npz", provenance=np.array(json.dumps(about)))
    with pytest.raises(DataError, match=says):
        load_references(a_protocol(data_root), data_root)
    same = {"extractor": "net", "steps": [{"jpeg": 75}, {"resize": 256, "filter": "pil-bicubic"}]}
    rewrite(data_root / "s.npz", provenance=np.array(json.dumps(same)))
    assert load_references(a_protocol(data_root), data_root)


FACES = SimpleNamespace(kind="scenes", layouts=("two", "one"), domain="faces")


def test_statistics_of_other_scenes_than_the_protocols_are_refused(data_root: Path) -> None:
    kinds = ("", " of layout one, two", " of layout one, two with things alone", " with faces alone")
    for told in (f"scenes 0 to 99{kind}" for kind in kinds):
        rewrite(data_root / "s.npz", provenance=np.array(json.dumps({"images": told})))
        with pytest.raises(DataError, match=f"of layout one, two with faces alone.*found {told!r}"):
            load_references(a_protocol(data_root, prompts=FACES), data_root)
    for told in (str(SceneSet(range(9), ["one", "two"], "faces")), "a folder of pictures"):
        rewrite(data_root / "s.npz", provenance=np.array(json.dumps({"images": told})))
        assert load_references(a_protocol(data_root, prompts=FACES), data_root)


def test_statistics_of_scenes_that_are_not_here_say_how_to_make_them(data_root: Path) -> None:
    (data_root / "s.npz").unlink()
    command = "stats scenes:20000000-20029999 --layouts one two --domain faces --extractor net"
    with pytest.raises(Unavailable, match=command):
        reference_of((protocol := a_protocol(data_root, prompts=FACES)), protocol.metrics["fid"], data_root)


# --- making ---


def colours(images: np.ndarray, prompts: object = ()) -> dict[str, torch.Tensor]:
    """Six numbers of a picture that any resize or recompression moves a little."""
    pixels = torch.from_numpy(np.array(images)).double()
    return {"features": torch.cat([pixels.mean((1, 2)), pixels.std((1, 2))], dim=1)}


NET = FeatureNetwork("net", "of a test", colours)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven pictures of three sizes, png and jpg, and a file that is no picture."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(7):
        shape = (24 + 8 * (i % 3), 40, 3)
        image = Image.fromarray(rng.integers(0, 256, shape, np.uint8))
        image.save(folder / (f"{i}.png" if i % 2 else f"{i}.JPG"), "PNG" if i % 2 else "JPEG")
    (folder / "captions.txt").write_text("no picture")
    return folder


@pytest.fixture
def _net(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "open_extractor", lambda name, **options: NET)


@pytest.mark.usefixtures("_net")
def test_pictures_of_several_sizes_need_no_resize_and_what_is_no_image_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make_statistics([folder], tmp_path / "s.npz", Workspace(), extractor="net").n == 7
    assert "images: passed over, as no images: 1 .txt" in capsys.readouterr().err


@pytest.mark.usefixtures("_net")
@pytest.mark.parametrize("kind", ["folder", "compressed", "parts"])
def test_statistics_equal_those_of_the_images_one_by_one(folder: Path, kind: str, tmp_path: Path) -> None:
    paths = sorted(folder.glob("[0-9]*"))
    files = {path.name: path.read_bytes() for path in paths}
    sources = [folder]
    if kind == "compressed":
        sources = [tarred(tmp_path / "a.tgz", files)]
    elif kind == "parts":
        sources = [zipped(tmp_path / "z.zip", {path.name: files[path.name] for path in paths[:4]})]
        sources.append(tarred(tmp_path / "a.tar", {path.name: files[path.name] for path in paths[4:]}))
    out, steps = tmp_path / "new" / "folder" / "s.npz", (Resize(resize=16, filter="pil-bicubic"),)
    made = make_statistics(sources, out, Workspace(), extractor="net", steps=steps, keep=3)
    rows = []
    for path in paths:
        with Image.open(path) as image:
            small = image.convert("RGB").resize((16, 16), Image.Resampling.BICUBIC)
        rows.append(colours(np.asarray(small)[None])["features"].numpy()[0].astype(np.float32))
    theirs = fid_features_to_statistics(torch.from_numpy(np.stack(rows).astype(np.float64)))
    got = load_reference(out, width=WIDTH)
    np.testing.assert_allclose(got.mu, theirs["mu"], rtol=1e-12)
    np.testing.assert_allclose(got.sigma, theirs["sigma"], rtol=1e-9, atol=1e-9)
    assert got.n == made.n == 7
    assert np.array_equal(got.features, np.stack(rows)[[0, 3, 6]])
    with np.load(out) as content:
        about = json.loads(str(content["provenance"]))
    assert about["extractor"] == "net"
    assert about["steps"] == [{"resize": 16, "filter": "pil-bicubic"}]


@pytest.mark.usefixtures("_net")
@pytest.mark.parametrize(("layouts", "domain"), [((), "all"), (("row",), "all"), ((), "faces")])
def test_statistics_of_scenes(layouts: tuple[str, ...], domain: str, tmp_path: Path) -> None:
    indices = scenes.REFERENCE[:200]
    out = tmp_path / "s.npz"
    source = SceneSet(indices, layouts, domain) if layouts or domain != "all" else indices
    made = make_statistics(source, out, Workspace(), extractor="net", keep=200)
    chosen = [index for index in indices if not layouts or scenes.scene(index).layout in layouts]
    expected = colours(scenes.render_batch(chosen, domain=domain))["features"].float().numpy()
    assert np.array_equal(made.features, expected)
    with np.load(out) as content:
        told = json.loads(str(content["provenance"]))["images"]
    assert told.startswith("scenes 20000000 to 20000199")
    assert ("of layout row" in told, "with faces alone" in told) == (bool(layouts), domain == "faces")
    np.testing.assert_allclose(made.mu, expected.mean(axis=0, dtype=float), rtol=1e-6)


@pytest.mark.usefixtures("_net")
def test_scenes_are_resized_where_that_is_asked_for(tmp_path: Path) -> None:
    steps = [Resize(resize=16, filter="pil-bicubic")]
    indices = scenes.REFERENCE[:8]
    made = make_statistics(indices, tmp_path / "s.npz", Workspace(), extractor="net", keep=8, steps=steps)
    small = np.stack([np.asarray(resize(Image.fromarray(each), 16)) for each in scenes.render_batch(indices)])
    assert np.array_equal(made.features, colours(small)["features"].float().numpy())


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_images_are_refused(n: int) -> None:
    with pytest.raises(DataError, match="at least 2 images"):
        compute_statistics([np.zeros((1, 8, 8, 3), np.uint8)] * n, NET, total=n)


def test_more_features_than_a_file_may_hold_are_refused_at_the_first_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(statistics, "_LARGEST", 8 * WIDTH * (WIDTH + 1) + 4 * WIDTH * 5)

    def batches() -> Iterator[Any]:
        yield np.zeros((2, 8, 8, 3), np.uint8)
        pytest.fail("a second batch was asked for")

    with pytest.raises(DataError, match=r"cannot hold so many features .found 6.*Keep 5 or fewer"):
        compute_statistics(batches(), NET, total=10, keep=6)


def test_a_network_names_the_size_that_it_takes() -> None:
    network = FeatureNetwork("net", "of a test", colours, size=8)
    assert network(np.zeros((2, 8, 8, 3), np.uint8))["net"].shape == (2, WIDTH)
    with pytest.raises(DataError, match=r"net: it takes pictures of 8x8 .found '9x8'"):
        network(np.zeros((2, 8, 9, 3), np.uint8))


@pytest.mark.usefixtures("_net")
def test_what_was_done_to_transparent_images_stays_with_the_statistics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    for number in range(3):
        Image.new("RGBA", (8, 8), (200, 0, 0, 100 * number)).save(tmp_path / "a" / f"{number}.png")
    with pytest.raises(DataError, match=r"0\.png: alpha: this image is transparent"):
        make_statistics([tmp_path / "a"], tmp_path / "s.npz", Workspace(), extractor="net")
    make_statistics([tmp_path / "a"], tmp_path / "s.npz", Workspace(), extractor="net", background="white")
    note = "3 images are transparent in part and were laid over white"
    assert f"a: {note}" in capsys.readouterr().err
    with np.load(tmp_path / "s.npz") as arrays:
        assert json.loads(str(arrays["provenance"]))["notes"] == [note]


@pytest.mark.usefixtures("_net")
def test_a_damaged_image_is_named_and_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    path = folder / "5.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"5\.png: this image cannot be read"):
        make_statistics([folder], tmp_path / "s.npz", Workspace(), extractor="net")
    assert not (tmp_path / "s.npz").exists()


def test_a_failed_write_keeps_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(DataError, match=r"cannot be written .found 'No space left on device'"):
        save_statistics(file, some(), {})
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


# --- what ships ---

SHIPPED = reference() / "statistics"


@pytest.mark.parametrize(
    ("name", "domain", "most"),
    [("scenes-classifier", "all", 2_000_000), ("scenes-portrait-classifier", "faces", 1_000_000)],
)
def test_shipped_statistics_are_of_the_shipped_classifier(name: str, domain: str, most: int) -> None:
    path, indices = SHIPPED / f"{name}.npz", scenes.REFERENCE
    shipped = load_reference(path, width=96)
    assert shipped.n == len(indices)
    assert shipped.features is not None
    assert path.stat().st_size < most
    with np.load(path) as content:
        about = json.loads(str(content["provenance"]))
    extractor = open_extractor("scenes-classifier")
    assert about["extractor_fingerprint"] == extractor.fingerprint
    # The kept features are spread evenly; recompute some of them.
    kept = np.linspace(0, len(indices) - 1, len(shipped.features)).round().astype(int)[:32]
    again = extractor(scenes.render_batch([indices[int(i)] for i in kept], domain=domain))[
        "scenes-classifier"
    ]
    np.testing.assert_allclose(shipped.features[:32], again, rtol=1e-3, atol=1e-3 * np.abs(again).max())
