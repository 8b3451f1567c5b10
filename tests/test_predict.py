"""A person's own images, made such as MNIST's were."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from capsjax import load_run, predict
from capsjax.data import load
from capsjax.run import Prediction

SHAPE = (28, 28, 1)


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
    image = predict.fit_image(drawing(width=width, ground=ground), SHAPE)
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
        predict.fit_image(drawing(ground=ground), SHAPE).astype(int)
        for ground in ("black", "white")
    )
    assert abs(light - dark).max() <= 2


def test_what_is_said_of_the_ground_holds():
    inverted = predict.fit_image(drawing(ground="white"), SHAPE, invert=True)
    told = predict.fit_image(drawing(ground="white"), SHAPE)
    np.testing.assert_array_equal(inverted, told)
    not_inverted = predict.fit_image(drawing(ground="white"), SHAPE, invert=False)
    assert not_inverted.max() == 0  # nothing is lighter than white


def test_a_ground_in_between_is_asked_about():
    grey = Image.new("RGB", (50, 50), (128, 128, 128))
    with pytest.raises(predict.UnclearGroundError, match=r"50%.*say which by invert"):
        predict.fit_image(grey, SHAPE)
    assert predict.fit_image(grey, SHAPE, invert=True).max() == 0


def test_an_empty_page_stays_empty():
    assert predict.fit_image(Image.new("RGB", (90, 40), "white"), SHAPE).max() == 0


def test_the_images_of_mnist_hardly_change():
    image = load("mnist", "test").image[:100]
    again = [
        predict.fit_image(Image.fromarray(one[..., 0]).convert("RGB"), SHAPE)
        for one in image
    ]
    assert np.abs(np.stack(again).astype(int) - image).mean() < 1


def test_colour_keeps_the_middle():
    image = Image.new("RGB", (60, 20), "blue")
    image.paste((255, 0, 0), (20, 0, 40, 20))
    fitted = predict.fit_image(image, (20, 20, 3))
    assert fitted.shape == (20, 20, 3)
    assert (fitted[:, 2:-2] == (255, 0, 0)).all()


def test_transparent_becomes_white(tmp_path):
    path = tmp_path / "drawing.png"
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(path)
    assert predict.read_image(path).getpixel((4, 4)) == (255, 255, 255)


def test_light_strokes_on_transparency_are_seen(tmp_path):
    image = Image.new("RGBA", (60, 60), (0, 0, 0, 0))
    ImageDraw.Draw(image).line((30, 5, 30, 55), "white", width=5)
    image.save(tmp_path / "light.png")
    fitted = predict.fit_image(predict.read_image(tmp_path / "light.png"), SHAPE)
    assert fitted.max() == 255


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_deep_grey_is_not_cut_off(dtype, tmp_path):
    grey = np.asarray(drawing().convert("L"), np.float64) / 255
    scale = 1 if dtype == np.float32 else 60_000
    deep = (0.08 + 0.9 * grey) * scale
    Image.fromarray(deep.astype(dtype)).save(tmp_path / "scan.tiff")
    image = predict.fit_image(predict.read_image(tmp_path / "scan.tiff"), SHAPE)
    expected = predict.fit_image(drawing(), SHAPE)
    assert np.abs(image.astype(int) - expected).max() < 12


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_numbers_are_refused(bad, tmp_path):
    pixels = np.full((9, 9), 0.5, np.float32)
    pixels[3, 4] = bad
    Image.fromarray(pixels).save(tmp_path / "scan.tiff")
    with pytest.raises(predict.ImageError, match=r"scan\.tiff: .* not finite numbers"):
        predict.read_image(tmp_path / "scan.tiff")


def test_a_folder_that_can_t_be_looked_into_is_told(capsys):
    assert predict.main(["--workdir", "x" * 5000, "image.png"]) == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("capsjax.predict: error: ")
    assert "name too long" in told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lengths", "verdict"),
    [
        ({7: 0.9}, "7"),
        ({7: 0.4}, "no digit"),
        ({7: 0.9, 2: 0.6}, "7, or two digits? (7 and 2)"),
    ],
)
def test_lengths_decide_how_many_digits_there_are(tiny_run, lengths, verdict):
    length = np.full((1, 10), 0.05, np.float32)
    for label, value in lengths.items():
        length[0, label] = value
    pose = np.zeros((1, 10, 4), np.float32)
    told = predict.verdicts(
        load_run(tiny_run), Prediction(length.argmax(-1), length, pose)
    )
    assert told[0]["verdict"] == verdict
    assert next(iter(told[0]["lengths"])) == told[0]["label"] == "7"


@pytest.mark.slow
def test_the_command_prints_a_table_or_json(tiny_run, tmp_path, capsys):
    paths = [str(tmp_path / f"{name}.png") for name in "ab"]
    for path in paths:
        drawing().save(path)
    assert predict.main(["--workdir", str(tiny_run), *paths]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("image")
    assert [line.split()[0] for line in lines] == paths
    assert predict.main(["--workdir", str(tiny_run), "--json", *paths]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["file"] for one in told] == paths
    assert len(told[0]["lengths"]) == 10


@pytest.mark.slow
def test_errors_name_the_file(tiny_run, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no image")
    drawing().save(tmp_path / "good.png")
    good = str(tmp_path / "good.png")
    for name, message in (
        ("text.png", "not an image"),
        ("missing.png", "No such file"),
    ):
        path = str(tmp_path / name)
        assert predict.main(["--workdir", str(tiny_run), path, good]) == 1
        out, error = capsys.readouterr()
        assert path in error
        assert message in error
        assert good in out  # One bad image does not take away the others' answers.
    assert predict.main(["--workdir", "nowhere", good]) == 1
    assert "nowhere holds no run" in capsys.readouterr().err


@pytest.mark.slow
def test_where_the_ground_is_not_plain_the_longer_capsule_counts(tiny_run, tmp_path):
    image = drawing(ground="white").point(lambda value: 128 if value > 128 else 60)
    image.save(tmp_path / "grey.png")
    run = load_run(tiny_run)
    both = [predict.fit_image(image, SHAPE, invert=invert) for invert in (True, False)]
    longest = run.predict(np.stack(both)).length.max()
    told = predict._answer(run, str(tmp_path / "grey.png"), invert=None)
    assert max(told["lengths"].values()) == pytest.approx(longest, abs=1e-4)
