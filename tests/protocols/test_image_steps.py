"""The way of an image, against Pillow and files on disk, step by step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pytest_sdbench.protocols.image_steps import apply_image_steps
from pytest_sdbench.protocols.sections import Jpeg, Resize

COCO = (Jpeg(jpeg=75), Resize(resize=256, filter="pil-bicubic"), Jpeg(jpeg=75))


def pictures(n: int, size: int) -> np.ndarray:
    """Smooth pictures with edges and some noise, so that every step changes them."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:size, 0:size] / size
    images = np.empty((n, size, size, 3), np.uint8)
    for image in images:
        waves = [np.sin(rng.uniform(3, 40) * x + rng.uniform(3, 40) * y * (-1) ** c) for c in range(3)]
        image[:] = 127 + 90 * np.stack(waves, -1) + rng.normal(0, 8, (size, size, 3))
        image[size // 4 : size // 2, size // 3 : size // 2] = rng.integers(0, 256, 3)
    return images


def test_published_way_equals_files_on_disk(tmp_path: Path) -> None:
    images = pictures(3, 512)
    expected = []
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}_512.jpg", quality=75)
        with Image.open(tmp_path / f"{number}_512.jpg") as opened:
            small = opened.convert("RGB").resize((256, 256), Image.Resampling.BICUBIC)
        small.save(tmp_path / f"{number}_256.jpg")  # Pillow's default quality is 75
        with Image.open(tmp_path / f"{number}_256.jpg") as opened:
            expected.append(np.asarray(opened.convert("RGB")))
    got = apply_image_steps(images, COCO)
    assert got.shape == (3, 256, 256, 3)
    assert np.array_equal(got, np.stack(expected))


def test_images_do_not_depend_on_their_batch() -> None:
    images = pictures(3, 96)
    steps = (Jpeg(jpeg=75), Resize(resize=40, filter="pil-bicubic"))
    alone = np.concatenate([apply_image_steps(images[i : i + 1], steps) for i in range(3)])
    assert np.array_equal(apply_image_steps(images, steps), alone)


def test_every_step_of_the_published_way_changes_the_picture() -> None:
    image = pictures(1, 512)
    whole = apply_image_steps(image, COCO)
    assert not np.array_equal(whole, apply_image_steps(image, COCO[1:]))
    assert not np.array_equal(whole, apply_image_steps(image, COCO[:-1]))
    # The order counts too.
    assert not np.array_equal(whole, apply_image_steps(image, (COCO[0], COCO[2], COCO[1])))


@pytest.mark.parametrize(
    ("name", "filter"), [("pil-bilinear", 2), ("pil-bicubic", 3), ("pil-lanczos", 1), ("pil-box", 4)]
)
def test_filters_are_those_of_pillow(name: str, filter: int) -> None:
    image = pictures(1, 64)
    expected = np.asarray(Image.fromarray(image[0]).resize((24, 24), Image.Resampling(filter)))
    got = apply_image_steps(image, (Resize(resize=24, filter=name),))  # type: ignore[arg-type]
    assert np.array_equal(got[0], expected)


def test_no_steps_change_nothing() -> None:
    images = pictures(2, 16)
    assert np.array_equal(apply_image_steps(images, ()), images)
    assert len(apply_image_steps(images[:0], COCO)) == 0


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8), np.zeros((2, 3, 8, 8), np.uint8)],
)
def test_anything_but_uint8_batches_is_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8 \[B, H, W, 3\]"):
        apply_image_steps(images, COCO)
