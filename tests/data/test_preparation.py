"""Pictures become like a data set's own images."""

import json
import struct

import numpy as np
import pytest
from PIL import Image, ImageDraw
from test_pictures import png_of_deep_colour

from capsjax.data import load
from capsjax.data.images import ImageError, read_image
from capsjax.data.picture import UnclearGroundError
from capsjax.data.preparation import Preparation

SHAPE = (28, 28, 1)
MNIST = Preparation.of("mnist", SHAPE)


def drawing(size=(300, 200), box=(200, 20, 260, 160), width=4, ground="white"):
    """Draws an ellipse, off centre."""
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
    assert image.max() == 255  # A thin pen too.
    rows, columns = extent(image)
    assert rows[-1] - rows[0] + 1 == 20
    assert columns[-1] - columns[0] + 1 == pytest.approx(20 * 60 / 140, abs=1)
    np.testing.assert_allclose(centre_of_mass(image), 14, atol=0.51)
    assert image[0].max() == 0


def test_dark_on_light_and_light_on_dark_give_the_same():
    light, dark = (
        MNIST.apply(drawing(ground=ground)).astype(int) for ground in ("black", "white")
    )
    assert abs(light - dark).max() <= 2


def test_invert_overrides_the_guess():
    inverted = MNIST.apply(drawing(ground="white"), invert=True)
    guessed = MNIST.apply(drawing(ground="white"))
    np.testing.assert_array_equal(inverted, guessed)
    not_inverted = MNIST.apply(drawing(ground="white"), invert=False)
    assert not_inverted.max() == 0  # Nothing is lighter than white.


def test_an_unclear_ground_is_refused():
    grey = Image.new("RGB", (50, 50), (128, 128, 128))
    with pytest.raises(UnclearGroundError, match=r"50%.*choose one by invert"):
        MNIST.apply(grey)
    assert MNIST.apply(grey, invert=True).max() == 0


def test_an_empty_page_stays_empty():
    assert MNIST.apply(Image.new("RGB", (90, 40), "white")).max() == 0


@pytest.mark.parametrize(
    ("name", "image_size", "every"),
    [
        pytest.param("mnist", 0, 1, marks=pytest.mark.slow),  # All 10,000.
        ("mnist", 0, 10),
        *[(f"{name}_mnist", 0, 10) for name in ("multi", "expanded")],
        *[
            pytest.param(*case, 10, marks=pytest.mark.variant)
            for case in (("mnist", 20), ("mnist", 40), ("affine_mnist", 0))
        ],
    ],
)
def test_test_images_stay_unchanged(name, image_size, every):
    test_set = load(name, "test", image_size=image_size)
    apply = test_set.preparation.apply
    for image in test_set.image[::every]:
        np.testing.assert_array_equal(apply(Image.fromarray(image[..., 0])), image)


def test_an_off_centre_digit_is_centred():
    image = load("mnist", "test").image[0]
    moved = np.roll(image, 2, axis=1)
    again = MNIST.apply(Image.fromarray(moved[..., 0])).astype(int)
    assert np.abs(again - image).mean() < np.abs(again - moved).mean() / 4


def test_a_black_digit_on_white_is_only_inverted():
    image = load("mnist", "test").image[0]
    again = MNIST.apply(Image.fromarray(255 - image[..., 0])).astype(int)
    assert np.abs(again - image).mean() < 2


@pytest.mark.parametrize(
    ("name", "size", "side"),
    [("multi_mnist", 36, 23), ("expanded_mnist", 40, 20), ("affine_mnist", 40, 20)],
)
def test_a_drawing_for_a_generated_set_is_centred(name, size, side):
    image = Preparation.of(name, (size, size, 1)).apply(drawing())
    assert image.shape == (size, size, 1)
    rows, _ = extent(image)
    assert rows[-1] - rows[0] + 1 == side
    np.testing.assert_allclose(centre_of_mass(image), size / 2, atol=0.51)


def test_a_description_survives_json():
    for preparation in (
        MNIST,
        Preparation("as_is", 20, 30, 3, scale=(-1024.0, 3071.5)),
        Preparation("as_is", 20, 30, 2),
    ):
        again = json.loads(json.dumps(preparation.to_json()))
        assert Preparation.from_json(again) == preparation


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "other"},
        {"kind": []},
        {"channels": 3, "kind": "mnist"},
        {"height": 0},
        {"width": "28"},
        {"width": 10**9},
        {"channels": True},
        {"scale": [5, 5]},
        {"scale": [0, 1, 2]},
        {"scale": [0, 10**400]},
        {"scale": {}},
        {"scale": "half"},
        {"orientation": "none"},
        {"unknown": 1},
    ],
)
def test_a_damaged_description_is_refused(change):
    damaged = {**Preparation.of("", (28, 28, 1)).to_json(), **change}
    with pytest.raises(ValueError, match=next(iter(change))):
        Preparation.from_json(damaged)
    for value in ([], None, "mnist"):
        with pytest.raises(ValueError, match="must be an object"):
            Preparation.from_json(value)


def test_a_pair_is_two_pages_or_two_halves(tmp_path):
    pair = np.random.default_rng(0).integers(0, 256, (20, 24, 2)).astype(np.uint8)
    left, right = (Image.fromarray(pair[..., k]) for k in (0, 1))
    left.save(tmp_path / "pages.tiff", save_all=True, append_images=[right])
    both = np.concatenate([pair[..., 0], pair[..., 1]], axis=1)
    Image.fromarray(both).save(tmp_path / "halves.png")
    left.save(tmp_path / "one.png")
    preparation = Preparation.of("smallnorb", (20, 24, 2))
    for name in ("pages.tiff", "halves.png"):
        notes = []
        image = preparation.apply(tmp_path / name, notes=notes)
        np.testing.assert_array_equal(image, pair)
        assert not notes
    with pytest.raises(ImageError, match=r"one\.png has 24 x 20 .* side by side, 48 x"):
        preparation.apply(tmp_path / "one.png")


def test_frames_that_are_not_read_are_named(tmp_path):
    frames = [drawing(width=width).convert("L") for width in (2, 4, 6)]
    preparation = Preparation.of("", (20, 20, 1))
    first = preparation.apply(frames[0])
    for suffix in ("gif", "tiff", "png", "webp"):
        path = tmp_path / f"several.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        notes = []
        image = preparation.apply(path, notes=notes)
        assert notes == [f"{path} has 3 frames: only the first is read"]
        assert abs(image.astype(int) - first).max() < 30
    one, notes = tmp_path / "one.png", []
    frames[0].save(one)
    preparation.apply(one, notes=notes)
    assert notes == []


def test_bands_that_are_not_read_are_named(tmp_path):
    pixels = np.arange(5 * 6 * 5, dtype=np.uint8).reshape(5, 6, 5)
    path, notes = tmp_path / "bands.tiff", []
    path.write_bytes(tiff_of_bands(pixels))
    image = Preparation.of("", (5, 6, 3)).apply(path, notes=notes)
    np.testing.assert_array_equal(image, pixels[..., :3])
    assert notes == [f"{path} has 5 bands: only the first 3 are read"]


def test_colour_with_more_than_8_bits_is_named_as_read_in_part(tmp_path):
    pixels = np.arange(5 * 6 * 3, dtype=np.uint16).reshape(5, 6, 3) * 700
    path, notes = tmp_path / "deep.png", []
    path.write_bytes(png_of_deep_colour(pixels))
    image = Preparation.of("", (5, 6, 3)).apply(path, notes=notes)
    np.testing.assert_array_equal(image, pixels // 256)
    assert notes == [f"{path} has 16 bits a channel: only the upper 8 are read"]


def tiff_of_bands(pixels):
    """Makes an uncompressed TIFF file with colour and further bands, as satellites."""
    height, width, bands = pixels.shape
    num_extra, start = bands - 3, 8
    tags = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8),  # Address of the bands' sizes, set below.
        (259, 3, 1),
        (262, 3, 2),
        (273, 4, 0),
        (277, 3, bands),
        (278, 4, height),
        (279, 4, pixels.nbytes),
        (338, 3, 0),
    ]
    after = start + 2 + 12 * len(tags) + 4
    content = b"II*\0" + struct.pack("<I", start) + struct.pack("<H", len(tags))
    for tag, kind, value in tags:
        count = {258: bands, 338: num_extra}.get(tag, 1)
        value = {258: after, 273: after + 2 * bands}.get(tag, value)
        content += struct.pack("<HHII", tag, kind, count, value)
    content += bytes(4) + struct.pack(f"<{bands}H", *[8] * bands)
    return content + pixels.tobytes()


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
