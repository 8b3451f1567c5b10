"""Images in files: turned, transparent, deep, grey."""

import numpy as np
import pytest
from PIL import Image

from capsjax.data import images
from capsjax.data.images import ImageError, fit, read_header, read_image


def halves(mode="RGB"):
    """Makes an image four pixels wide and two high, bright on the left."""
    image = Image.new("RGB", (4, 2))
    image.paste("white", (0, 0, 2, 2))
    return image.convert(mode)


def test_a_photo_is_turned_as_its_camera_was_held(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was turned left: the left edge belongs above.
    halves().save(tmp_path / "a.png", exif=exif)
    expected = np.asarray(halves().rotate(-90, expand=True))
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), expected)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_every_pixel_of_a_tiff_file_is_where_its_orientation_puts_it(
    dtype, compression, tmp_path
):
    pixels = np.arange(0, 240, 40).astype(dtype).reshape(2, 3)
    for orientation, expected in (
        (3, np.rot90(pixels, 2)),
        (5, pixels.T),
        (6, np.rot90(pixels, -1)),
        (8, np.rot90(pixels)),
    ):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.tiff"
        Image.fromarray(pixels).save(path, exif=exif, compression=compression)
        read = np.asarray(read_image(path, scale=(0.0, 255.0)).convert("L"))
        np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white_and_the_others_stay(tmp_path, mode):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (90, 90, 90, 255))
    image.convert(mode).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert [read.getpixel((column, 0)) for column in (0, 1)] == [(255,) * 3, (90,) * 3]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(mode, True) for mode in ("1", "L", "LA", "I;16")]
    + [(mode, False) for mode in ("RGB", "RGBA", "P")],
)
def test_the_header_shows_whether_there_is_colour(tmp_path, mode, expected):
    halves(mode).save(tmp_path / "a.png")
    assert read_header(tmp_path / "a.png").is_grey == expected


@pytest.mark.parametrize("channels", [1, 3])
def test_the_middle_is_scaled_to_the_shape(channels):
    image = fit(halves(), (4, 4, channels))
    assert image.shape == (4, 4, channels)
    assert image[:, 0].min() > 250
    assert image[:, 3].max() < 5


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path, monkeypatch
):
    halves().save(tmp_path / "a.png")
    monkeypatch.setattr(images, "_MOST_PIXELS", 7)
    for read in (read_image, read_header):
        with pytest.raises(ImageError, match=r"has 4 x 2 pixels; at most 7 are read"):
            read(tmp_path / "a.png")
