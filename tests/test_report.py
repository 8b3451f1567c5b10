"""Runs gathered into a table."""

import json

import pytest

from capsjax import config as configs
from capsjax import report
from capsjax.workdir import WorkdirError


@pytest.fixture
def made(tmp_path):
    """Writes what a run that has ended leaves behind."""

    def make(name, accuracy=0.99, last=None, told=(), found=None, **fields):
        path = tmp_path / name
        path.mkdir()
        config = configs.Config(**{"experiment": "mnist", **fields})
        (path / "config.json").write_text(json.dumps(configs.to_dict(config)))
        result = {
            "test": {"accuracy": accuracy},
            "test_of_last": {"accuracy": last or accuracy},
            "seconds": 120.0,
            "num_parameters": 8215568,
            "num_epochs": config.num_epochs,
            **dict(told),
        }
        if found is not None:
            result["test"]["label_accuracy"] = found
        (path / "result.json").write_text(json.dumps(result))
        lines = [
            {"kind": "validation", "epoch": k, "accuracy": accuracy - 0.01 / k}
            for k in (1, 2)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (path / "metrics.jsonl").write_text(text)
        return path

    return make


def test_seeds_become_mean_and_sample_deviation(made, capsys):
    paths = [
        made(f"a{seed}", accuracy, last=0.99, seed=seed)
        for seed, accuracy in enumerate((0.994, 0.995, 0.999))
    ]
    paths.append(made("b", 0.9, variant="paper"))
    assert report.main([str(path) for path in paths]) == 0
    lines = capsys.readouterr().out.splitlines()
    plain, paper = ([c.strip() for c in line.split("|")[1:-1]] for line in lines[2:4])
    assert plain == [
        "mnist",
        "mnist",
        "0, 1, 2",
        "10",
        "99.60 ± 0.26",
        "99.00 ± 0.00",
        "2.0",
        "8,215,568",
    ]
    assert paper[:5] == ["mnist-paper", "mnist", "0", "10", "90.00"]


def test_epochs_that_were_done_and_classes_that_were_found_are_told(made, capsys):
    paths = [
        made(f"a{seed}", found=found, told={"epochs_done": epochs}, seed=seed)
        for seed, (found, epochs) in enumerate([(0.96, 3), (0.98, 5)])
    ]
    paths.append(made("b", variant="paper"))
    assert report.main([str(path) for path in paths]) == 0
    lines = capsys.readouterr().out.splitlines()
    head, _, several, one = ([c.strip() for c in x.split("|")[1:-1]] for x in lines[:4])
    assert head[-1] == "classes found, best by validation, %"
    assert (several[3], several[-1]) == ("3, 5", "97.00 ± 1.41")
    assert (one[3], one[-1]) == ("10", "")


def test_runs_of_another_configuration_are_not_averaged(made, capsys):
    paths = [made("a"), made("b", seed=1, batch_size=64)]
    assert report.main([str(path) for path in paths]) == 1
    error = capsys.readouterr().err
    assert "batch_size is 128 there, 64 here" in error
    assert "seed" not in error.split("averaged")[1]


def test_what_does_not_change_what_is_learnt_does_not_matter(made):
    runs = [
        report.read_run(made("a")),
        report.read_run(made("b", seed=1, eval_batch_size=7, max_gigabytes=3.0)),
    ]
    assert len(report.gather(runs)["mnist"]) == 2


def test_one_run_is_not_counted_twice(made):
    runs = [report.read_run(made("a")), report.read_run(made("b"))]
    with pytest.raises(WorkdirError, match="same seed, 0"):
        report.gather(runs)


def test_what_has_not_ended_is_refused(made, tmp_path, capsys):
    path = made("a")
    (path / "result.json").unlink()
    assert report.main([str(path)]) == 1
    assert "has not ended" in capsys.readouterr().err
    assert report.main([str(tmp_path / "nowhere")]) == 1
    assert "holds no run" in capsys.readouterr().err
    (path / "result.json").write_text("{}")
    assert report.main([str(path)]) == 1
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize("value", [None, "9", [], 10**400], ids=type)
@pytest.mark.parametrize("name", ["seconds", "num_parameters", "accuracy"])
def test_a_result_of_other_types_is_told(made, capsys, name, value):
    path = made("a")
    result = json.loads((path / "result.json").read_text())
    (result["test"] if name == "accuracy" else result)[name] = value
    (path / "result.json").write_text(json.dumps(result))
    assert report.main([str(path)]) == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert "damaged" in told


def test_the_curves_are_drawn(made, tmp_path):
    figure = tmp_path / "curves.png"
    paths = [made("a"), made("b", seed=1), made("c", variant="paper")]
    assert report.main([*map(str, paths), "--figure", str(figure)]) == 0
    assert figure.stat().st_size > 1000
