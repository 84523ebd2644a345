"""Folders of pictures, with metadata or texts beside them, and how a picture is fitted."""

from __future__ import annotations

import json

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet
from torchvision import transforms

from pytest_sdbench.features.images import open_images, read_captions
from tests.training.data.samples import encoded, picture, write_folder
from training.data.folder import FolderSource
from training.data.open import open_source
from training.data.source import BadSample, Sample, fit, to_pixels
from training.errors import TrainingError
from training.recipes.schema import FolderData, ScenesData

CAPTION = 'A "red" cat, über\nälles 猫 🐈'


def test_metadata_csv_is_read_as_the_image_folder_of_datasets_reads_it(tmp_path):
    datasets = pytest.importorskip("datasets")
    folder = write_folder(
        tmp_path / "data",
        {
            "b.png": (picture(0), CAPTION),
            "sub/a.png": (picture(1, 90, 70), "blue"),
            "c.png": (picture(2), "x"),
        },
    )
    source = FolderSource(folder)
    oracle = datasets.load_dataset(
        "imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache")
    )
    theirs = {row["text"]: np.asarray(row["image"]) for row in oracle}
    ours = {source.read(row).caption: np.asarray(source.read(row).image) for row in range(len(source))}
    assert ours.keys() == theirs.keys() == {CAPTION, "blue", "x"}
    for caption, pixels in theirs.items():
        assert np.array_equal(ours[caption], pixels)
    # The rows keep the order of the metadata.
    assert [source.read(row).caption for row in range(3)] == [CAPTION, "blue", "x"]


def test_metadata_jsonl_and_a_byte_order_mark(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(picture(0)))
    line = json.dumps({"file_name": "a.png", "text": CAPTION, "width": 64})
    (tmp_path / "metadata.jsonl").write_text(f"\ufeff{line}\n\n", encoding="utf-8")
    assert FolderSource(tmp_path).read(0).caption == CAPTION
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text("\ufefffile_name,text\na.png,red\n", encoding="utf-8")
    assert FolderSource(tmp_path).read(0).caption == "red"


TABLES = {
    "caption": ("metadata.csv", b"seed,caption,file_name\n7,red,a.png\n"),
    "prompt": ("metadata.jsonl", b'{"file_name": "./a.png", "text": null, "prompt": "red"}\n'),
    "parquet": ("metadata.parquet", None),
    "text first": ("metadata.csv", b"file_name,caption,text\na.png,blue,red\n,,\n"),
    "beside": ("a.json", b'{"caption": "red", "key": 1}'),
}


@pytest.mark.parametrize("name", TABLES)
def test_captions_are_those_that_score_reads(tmp_path, name):
    file, content = TABLES[name]
    (tmp_path / "a.png").write_bytes(encoded(picture(0)))
    if content is None:
        parquet.write_table(pyarrow.table({"file_name": ["a.png"], "caption": ["red"]}), str(tmp_path / file))
    else:
        (tmp_path / file).write_bytes(content)
    assert FolderSource(tmp_path).read(0).caption == "red"
    assert "red" in read_captions(open_images([tmp_path]))[0]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metadata.parquet", {"file_name": ["a.png", "b.png"], "text": [None, "red"]}),
        ("metadata.parquet", {"file_name": ["a.png", "b.png"], "text": [[], ["red", "crimson"]]}),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "text": null}\n{"file_name": "b.png", "text": ["red", "x"]}\n',
        ),
        ("metadata.jsonl", '{"file_name": "a.png", "text": NaN}\n{"file_name": "b.png", "text": "red"}\n'),
        ("metadata.csv", "file_name,text\na.png,\nb.png,red\n"),
    ],
)
def test_a_caption_that_lacks_is_an_empty_one_and_of_a_list_the_first_is_taken(tmp_path, file, content):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(encoded(picture(0)))
    if isinstance(content, str):
        (tmp_path / file).write_text(content)
    else:
        parquet.write_table(pyarrow.table(content), str(tmp_path / file))
    assert FolderSource(tmp_path).captions == ["", "red"]


def test_names_are_found_whichever_way_accents_are_written(tmp_path):
    (tmp_path / "\u00e9.png").write_bytes(encoded(picture(0)))
    (tmp_path / "metadata.csv").write_text("file_name,text\ne\u0301.png,red\n", encoding="utf-8")
    assert FolderSource(tmp_path).read(0).caption == "red"


@pytest.mark.parametrize("kind", ["deep.png", "deep.tiff", "float.tiff", "moving.webp"])
def test_pictures_that_pillow_would_clip_or_cut_are_left_out(tmp_path, kind):
    ramp = np.linspace(0, 60_000, 64 * 64).reshape(64, 64)
    if kind == "moving.webp":
        picture(0).save(tmp_path / kind, save_all=True, append_images=[picture(1)])
    else:
        Image.fromarray(ramp.astype(np.float32 if "float" in kind else np.uint16)).save(tmp_path / kind)
    source = FolderSource(tmp_path, caption="x")
    with pytest.raises(BadSample, match=r"more than 8 bits a channel|an animation of 2 pictures"):
        source.read(0)


def test_a_text_beside_each_picture(tmp_path):
    for name in ("b.jpg", "a.webp", "deep/er/c.PNG", ".hidden.png", ".cache/thumb.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        form = {"jpg": "jpeg", "webp": "webp"}.get(name.rsplit(".")[-1], "png")
        (tmp_path / name).write_bytes(encoded(picture(1), form))
        (tmp_path / name).with_suffix(".txt").write_text(f"the {name}\n", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("no picture of that name")
    source = FolderSource(tmp_path)
    captions = [source.read(row).caption for row in range(len(source))]
    assert captions == ["the a.webp", "the b.jpg", "the deep/er/c.PNG"]


def test_one_caption_for_all(tmp_path):
    write_folder(tmp_path, {"a.png": (picture(0), "ignored"), "b.png": (picture(1), "ignored")})
    source = FolderSource(tmp_path, caption="a sks dog")
    assert [source.read(row).caption for row in range(len(source))] == ["a sks dog"] * 2


def test_a_picture_is_upright_and_rgb(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    tall = picture(3, 40, 20)
    tall.save(tmp_path / "a.png", exif=exif)
    Image.new("LA", (8, 8), (100, 255)).save(tmp_path / "b.png")
    source = FolderSource(tmp_path, caption="x")
    assert np.array_equal(np.asarray(source.read(0).image), np.rot90(np.asarray(tall), -1))
    assert np.asarray(source.read(1).image).shape == (8, 8, 3)


def test_a_transparent_picture_is_named_and_left_out(tmp_path):
    Image.new("LA", (8, 8), (100, 0)).save(tmp_path / "a.png")
    palette = Image.new("P", (8, 8))
    palette.save(tmp_path / "b.png", transparency=0)
    source = FolderSource(tmp_path, caption="x")
    for row in range(2):
        with pytest.raises(BadSample, match=r"[ab]\.png.*transparent"):
            source.read(row)


def test_a_corrupt_picture_is_named_with_the_reason(tmp_path):
    whole = encoded(picture(0))
    write_folder(
        tmp_path,
        {
            "good.png": (whole, "a"),
            "cut.png": (whole[: len(whole) // 2], "b"),
            "empty.png": (b"", "c"),
            # One bit in the checksum of the pixels: they would decode without an error.
            "flipped.png": (whole[:-13] + bytes([whole[-13] ^ 1]) + whole[-12:], "d"),
        },
    )
    source = FolderSource(tmp_path)
    source.read(0)
    for row, name in ((1, "cut.png"), (2, "empty.png"), (3, "flipped.png")):
        with pytest.raises(BadSample, match="not a readable picture") as caught:
            source.read(row)
        assert name in caught.value.key


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"file_name,text\na.png,red\nmissing.png,blue\n", ["missing.png", "not there"]),
        (b"file_name,title\na.png,red\n", ["'text'", "line 2", "caption"]),
        (b"name,text\na.png,red\n", ["file_name", "line 2"]),
        (b"file_name,text\na.png,red, round\n", ["line 2", "quotes"]),
        (b"file_name,text\na.png\n", ["'text'", "line 2"]),
        (b"file_name,text\n", ["no pictures"]),
        (b"file_name,text\na.png,\xff\xfe\n", ["UTF-8"]),
    ],
)
def test_broken_metadata_is_explained(tmp_path, content, words):
    (tmp_path / "a.png").write_bytes(encoded(picture(0)))
    (tmp_path / "metadata.csv").write_bytes(content)
    with pytest.raises(TrainingError) as caught:
        FolderSource(tmp_path)
    for word in ["metadata.csv", *words]:
        assert word in str(caught.value)


def test_broken_lines_folders_and_doubled_metadata_are_explained(tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n{broken\n')
    (tmp_path / "a.png").write_bytes(encoded(picture(0)))
    with pytest.raises(TrainingError, match=r"metadata\.jsonl: line 2: .*no JSON object"):
        FolderSource(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,x\n")
    with pytest.raises(TrainingError, match="two files of captions"):
        FolderSource(tmp_path)
    with pytest.raises(TrainingError, match=r"data\.path: no such folder"):
        FolderSource(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match="no pictures"):
        FolderSource(tmp_path / "empty")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "a.png").write_bytes(encoded(picture(0)))
    with pytest.raises(TrainingError, match="no captions"):
        FolderSource(tmp_path / "bare")


def test_the_fingerprint_follows_the_content_and_not_the_place(tmp_path):
    rows = {"a.png": (picture(0), "red"), "b.png": (picture(1), "blue")}
    original = FolderSource(write_folder(tmp_path / "one", rows)).fingerprint
    assert FolderSource(write_folder(tmp_path / "two", rows)).fingerprint == original
    others = [
        {**rows, "b.png": (picture(1), "green")},
        {**rows, "b.png": (picture(1, 65, 64), "blue")},
        {"a.png": rows["a.png"], "c.png": rows["b.png"]},
        dict(reversed(rows.items())),
    ]
    different = [
        FolderSource(write_folder(tmp_path / str(n), other)).fingerprint for n, other in enumerate(others)
    ]
    assert len({original, *different}) == 5


@pytest.mark.parametrize("caption", ["", "  \n"])
def test_empty_captions(tmp_path, caption):
    folder = write_folder(tmp_path, {"a.png": (picture(0), "red"), "b.png": (picture(1), caption)})

    def data(**options):
        return FolderData(kind="folder", path=str(folder), **options)

    with pytest.raises(TrainingError, match=rf"{folder}: row 1: .*empty caption.*data\.empty_captions"):
        open_source(data())
    assert open_source(data(empty_captions="keep")).read(1).caption == caption
    with pytest.raises(BadSample, match="empty caption"):
        open_source(data(empty_captions="skip")).read(1)
    # Only the pairs that are asked for count.
    assert len(open_source(data(pairs=1))) == 1


def test_more_pairs_than_there_are(tmp_path):
    folder = write_folder(tmp_path, {"a.png": (picture(0), "red")})
    with pytest.raises(TrainingError, match=r"data\.pairs: fewer pairs than asked for: 1 \(found 5\)"):
        open_source(FolderData(kind="folder", path=str(folder), pairs=5))


def test_scenes_by_recipe():
    source = open_source(ScenesData(kind="scenes", pairs=5, first=100, resolution=32))
    assert source.read(0).key == "scene 100"
    assert fit(source.read(0), 32).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("width", "height"), [(64, 64), (200, 100), (101, 333), (65, 64), (511, 97), (50, 77)]
)
@pytest.mark.parametrize("resolution", [32, 50])
def test_fitting_equals_torchvisions_resize_and_centre_crop(width, height, resolution):
    image = picture(width, width, height)
    theirs = transforms.Compose(
        [
            transforms.Resize(resolution, interpolation=transforms.InterpolationMode.BILINEAR),
            transforms.CenterCrop(resolution),
        ]
    )(image)
    ours = fit(Sample("a", image, ""), resolution)
    assert np.array_equal(ours, np.asarray(theirs))
    scaled = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])(theirs)
    mirrored = scaled.flip(2)
    pixels = to_pixels([ours, ours], [False, True])
    assert (pixels[0] - scaled).abs().max() < 1e-6
    assert (pixels[1] - mirrored).abs().max() < 1e-6


def test_small_pictures_are_refused_or_enlarged():
    small = Sample("dir/small.png", picture(0, 100, 20), "")
    with pytest.raises(TrainingError, match=r"dir/small\.png.*100x20.*data\.upscale"):
        fit(small, 32)
    assert fit(small, 32, upscale=True).shape == (32, 32, 3)
    assert fit(small, None).shape == (20, 100, 3)


def test_pictures_that_are_passed_over_are_told(tmp_path):
    write_folder(tmp_path, {"a.png": (picture(0), "a")})
    (tmp_path / "metadata.csv").rename(tmp_path / "a.csv")
    picture(1).save(tmp_path / "b.bmp")
    picture(1).save(tmp_path / "c.gif")
    said = []
    source = FolderSource(tmp_path, caption="x", say=said.append)
    assert len(source) == 2
    assert np.array_equal(np.asarray(source.read(1).image), np.asarray(picture(1)))
    (line,) = said
    assert "1 pictures" in line
    assert "c.gif" in line


def test_subfolders_have_captions_of_their_own_and_links_lead_in_no_circle(tmp_path):
    write_folder(tmp_path / "one", {"a.png": (picture(0), "red"), "b.png": (picture(1), "blue")})
    write_folder(tmp_path / "two" / "deep", {"a.png": (picture(2), "green")})
    (tmp_path / "two" / "all").symlink_to(tmp_path)
    source = FolderSource(tmp_path)
    assert [source.read(row).caption for row in range(len(source))] == ["red", "blue", "green"]
