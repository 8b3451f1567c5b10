"""The network that comes with capsjax."""

import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

import capsjax
from capsjax import predict
from capsjax.analysis.images import load_test_set
from capsjax.data import load

MEGABYTES = 2.0


@pytest.fixture(scope="module")
def run():
    return capsjax.load_pretrained("mnist")


def test_it_is_small_and_reads_digits(run):
    files = [path for path in run.workdir.path.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MEGABYTES * 1e6
    digits = load("mnist", "test").subset(np.arange(64))
    assert (run.predict(digits.image).label == digits.label).mean() > 0.95


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(ValueError, match=r"no network 'minst' .*: choose from mnist"):
        capsjax.load_pretrained("minst")


def test_predict_needs_no_folder(tmp_path, capsys):
    digits = load("mnist", "test")
    Image.fromarray(np.pad(digits.image[0, ..., 0], 8)).save(tmp_path / "digit.png")
    Image.new("L", (40, 30), 255).save(tmp_path / "empty.png")
    paths = [str(tmp_path / name) for name in ("digit.png", "empty.png")]
    assert predict.main(["--json", *paths]) == 0
    told = json.loads(capsys.readouterr().out)
    verdicts = [one["verdict"] for one in told]
    assert verdicts == [str(digits.label[0]), "no digit"]


def test_the_card_states_its_results(run):
    card = (run.workdir.path / "README.md").read_text()
    for split in ("test", "validation"):
        (row,) = re.findall(rf"^\| {split} accuracy \| (.*) \|$", card, re.M)
        measured = run.result[split]
        if measured is None:
            assert row == "not measured"
        else:
            assert row.startswith(f"{measured['accuracy']:.2%}, loss ")
    assert f"recipe | mnist:narrow, seed {run.config.seed}, step {run.step}" in card


@pytest.mark.slow
def test_rounding_to_float16_changes_no_label(run):
    """A network of float32 weights that float16 rounds to these has the same labels."""
    generator = np.random.default_rng(0)

    def unrounded(array):
        half = np.asarray(array).astype(np.float16)
        within = generator.uniform(-0.5, 0.5, array.shape)
        other = (array + within * np.spacing(np.abs(half))).astype(np.float32)
        return np.where(other.astype(np.float16) == half, other, array)

    digits = load_test_set([run], None)
    labels = run.predict(digits.image).label
    other = capsjax.load_pretrained("mnist")
    other.params = jax.tree.map(unrounded, run.params)
    np.testing.assert_array_equal(other.predict(digits.image).label, labels)
    # The result was measured with the weights before they were rounded.
    if (measured := run.result["test"]) is not None:
        assert np.mean(labels == digits.label) == pytest.approx(measured["accuracy"])
