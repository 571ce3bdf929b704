"""Preprocessing: what reaches the encoder, for whatever a camera or a web page gives."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.errors import StageError
from stages.data.image import ASPECTS, preprocess

SETTINGS = {"image_size": 8, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "aspect": "stretch"}


def halves(width: int, height: int) -> np.ndarray:
    """Left half red, right half blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 255
    return pixels


def test_an_image_of_the_right_size_is_only_normalised():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    found = preprocess(pixels, {**SETTINGS, "mean": [0.5, 0.4, 0.3], "std": [0.5, 0.2, 0.1]})
    expected = (pixels / 255 - [0.5, 0.4, 0.3]) / [0.5, 0.2, 0.1]
    assert found.shape == (1, 3, 8, 8) and found.dtype == np.float32 and found.flags["C_CONTIGUOUS"]
    np.testing.assert_allclose(found[0].transpose(1, 2, 0), expected, rtol=1e-5, atol=1e-5)


def test_stretch_keeps_all_of_the_image():
    red, _, blue = preprocess(halves(32, 8), SETTINGS)[0]
    assert (red[:, :3] == 1).all() and (blue[:, 5:] == 1).all()


def test_crop_keeps_the_middle():
    pixels = halves(32, 8)
    pixels[:, :12] = pixels[:, 20:] = 99
    red, green, blue = preprocess(pixels, {**SETTINGS, "aspect": "crop"})[0]
    assert (red[:, :4] == 1).all() and (blue[:, 4:] == 1).all() and (green == 0).all()


def test_pad_lays_the_image_on_the_mean():
    settings = {**SETTINGS, "aspect": "pad", "mean": [0.2, 0.4, 0.6]}
    found = preprocess(np.full((4, 8, 3), 255, np.uint8), settings)[0]
    assert np.abs(found[:, [0, 1, 6, 7]]).max() < 1e-6
    np.testing.assert_allclose(found[:, 2:6, 0], np.repeat([[0.8], [0.6], [0.4]], 4, axis=1), rtol=1e-5)


@pytest.mark.parametrize("aspect", ASPECTS)
def test_the_filter_is_the_settings(aspect):
    """Bilinear where nothing is said, as before there was a choice."""
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    plain, bilinear, bicubic = (
        preprocess(pixels, {**SETTINGS, "aspect": aspect, **more})
        for more in ({}, {"resample": "bilinear"}, {"resample": "bicubic"})
    )
    np.testing.assert_array_equal(plain, bilinear)
    assert 0.001 < np.abs(bicubic - bilinear).mean() < 0.1
    with pytest.raises(StageError) as error:
        preprocess(pixels, {**SETTINGS, "resample": "bicubik"})
    assert "did you mean 'bicubic'?" in error.value.hint


def test_the_cameras_rotation_is_applied(tmp_path):
    upright = Image.fromarray(halves(8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: rotate by 270 degrees to see it
    upright.rotate(90).save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(preprocess(tmp_path / "photo.png", SETTINGS), preprocess(upright, SETTINGS))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparency_is_laid_over_white(tmp_path, mode):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    path = tmp_path / "icon.png"
    if mode == "P":
        Image.new("P", (8, 8), 0).save(path, transparency=0)
    elif mode == "RGB":
        Image.new("RGB", (8, 8), (0, 0, 0)).save(path, transparency=(0, 0, 0))
    else:
        image.convert(mode).save(path)
    assert (preprocess(path, SETTINGS) == 1).all()


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "RGB", "CMYK"])
def test_grey_and_other_colours_become_rgb(tmp_path, mode):
    light = {"1": 1, "L": 255, "I;16": 65535, "RGB": (255, 255, 255), "CMYK": (0, 0, 0, 0)}[mode]
    path = tmp_path / f"light.{'jpg' if mode == 'CMYK' else 'png'}"
    Image.new(mode, (8, 8), light).save(path)
    assert (preprocess(path, SETTINGS) > 0.99).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from(ASPECTS))
def test_any_size_becomes_the_square(width, height, aspect):
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3)).astype(np.uint8)
    found = preprocess(pixels, {**SETTINGS, "aspect": aspect})
    assert found.shape == (1, 3, 8, 8) and found.min() >= 0 and found.max() <= 1
    np.testing.assert_array_equal(found, preprocess(Image.fromarray(pixels), {**SETTINGS, "aspect": aspect}))


def test_what_is_no_image_is_named(tmp_path):
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(whole)
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:2000])
    text = tmp_path / "text.png"
    text.write_text("no image")
    for path in (cut, text, tmp_path / "missing.png"):
        with pytest.raises(StageError, match=path.name):
            preprocess(Path(path), SETTINGS)
    with pytest.raises(StageError, match="float64"):
        preprocess(np.zeros((8, 8, 3)), SETTINGS)
    with pytest.raises(StageError) as error:
        preprocess(halves(8, 8), {**SETTINGS, "aspect": "strech"})
    assert "did you mean 'stretch'?" in error.value.hint
