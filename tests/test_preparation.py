"""Pictures that become what a data set's images are."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from capsjax.data import load
from capsjax.data.image_file import ImageError, read_image
from capsjax.data.picture import UnclearGroundError
from capsjax.data.preparation import Preparation

SHAPE = (28, 28, 1)
MNIST = Preparation.of("mnist", SHAPE)


def drawing(size=(300, 200), box=(200, 20, 260, 160), width=4, ground="white"):
    """An ellipse, off centre."""
    image = Image.new("RGB", size, ground)
    ink = "black" if ground == "white" else "white"
    ImageDraw.Draw(image).ellipse(box, outline=ink, width=width)
    return image


def centre_of_mass(image):
    weight = image[..., 0] / image.sum()
    return [(np.indices(weight.shape)[k] * weight).sum() for k in (0, 1)]


def extent(image):
    return [np.flatnonzero(image[..., 0].any(axis)) for axis in (1, 0)]


@pytest.mark.parametrize("width", [2, 8, 20])
@pytest.mark.parametrize("ground", ["white", "black"])
def test_a_drawing_is_scaled_and_centred_as_mnist(width, ground):
    image = MNIST.apply(drawing(width=width, ground=ground))
    assert image.shape == SHAPE
    assert image.dtype == np.uint8
    assert image.max() == 255  # a thin pen too
    rows, columns = extent(image)
    assert rows[-1] - rows[0] + 1 == 20
    assert columns[-1] - columns[0] + 1 == pytest.approx(20 * 60 / 140, abs=1)
    np.testing.assert_allclose(centre_of_mass(image), 14, atol=0.51)
    assert image[0].max() == 0


def test_dark_on_light_is_told_from_light_on_dark():
    light, dark = (
        MNIST.apply(drawing(ground=ground)).astype(int) for ground in ("black", "white")
    )
    assert abs(light - dark).max() <= 2


def test_what_is_said_of_the_ground_holds():
    inverted = MNIST.apply(drawing(ground="white"), invert=True)
    told = MNIST.apply(drawing(ground="white"))
    np.testing.assert_array_equal(inverted, told)
    not_inverted = MNIST.apply(drawing(ground="white"), invert=False)
    assert not_inverted.max() == 0  # nothing is lighter than white


def test_a_ground_in_between_is_asked_about():
    grey = Image.new("RGB", (50, 50), (128, 128, 128))
    with pytest.raises(UnclearGroundError, match=r"50%.*say which by invert"):
        MNIST.apply(grey)
    assert MNIST.apply(grey, invert=True).max() == 0


def test_an_empty_page_stays_empty():
    assert MNIST.apply(Image.new("RGB", (90, 40), "white")).max() == 0


def test_the_images_of_mnist_hardly_change():
    image = load("mnist", "test").image[:100]
    again = [MNIST.apply(Image.fromarray(one[..., 0]).convert("RGB")) for one in image]
    assert np.abs(np.stack(again).astype(int) - image).mean() < 1


def test_colour_keeps_the_middle():
    image = Image.new("RGB", (60, 20), "blue")
    image.paste((255, 0, 0), (20, 0, 40, 20))
    fitted = Preparation.of("cifar10", (20, 20, 3)).apply(image)
    assert fitted.shape == (20, 20, 3)
    assert (fitted[:, 2:-2] == (255, 0, 0)).all()


def test_transparent_becomes_white(tmp_path):
    path = tmp_path / "drawing.png"
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(path)
    assert read_image(path).getpixel((4, 4)) == (255, 255, 255)


def test_light_strokes_on_transparency_are_seen(tmp_path):
    image = Image.new("RGBA", (60, 60), (0, 0, 0, 0))
    ImageDraw.Draw(image).line((30, 5, 30, 55), "white", width=5)
    image.save(tmp_path / "light.png")
    fitted = MNIST.apply(read_image(tmp_path / "light.png"))
    assert fitted.max() == 255


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_deep_grey_is_not_cut_off(dtype, tmp_path):
    grey = np.asarray(drawing().convert("L"), np.float64) / 255
    scale = 1 if dtype == np.float32 else 60_000
    deep = (0.08 + 0.9 * grey) * scale
    Image.fromarray(deep.astype(dtype)).save(tmp_path / "scan.tiff")
    image = MNIST.apply(tmp_path / "scan.tiff")
    expected = MNIST.apply(drawing())
    assert np.abs(image.astype(int) - expected).max() < 12


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_numbers_are_refused(bad, tmp_path):
    pixels = np.full((9, 9), 0.5, np.float32)
    pixels[3, 4] = bad
    Image.fromarray(pixels).save(tmp_path / "scan.tiff")
    with pytest.raises(ImageError, match=r"scan\.tiff: .* not finite numbers"):
        read_image(tmp_path / "scan.tiff")
