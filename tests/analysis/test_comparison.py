"""Runs gathered into a table."""

import io
import json
import sys

import pytest

from capsjax import config as configs
from capsjax import evaluate, predict, report
from capsjax.analysis import comparison
from capsjax.storage.files import WorkdirError
from capsjax.training.command_line import experiment


def changed(section, names, value):
    """A copy of a section with another value in one field, also deep within."""
    name, *rest = names
    if rest:
        value = changed(getattr(section, name), rest, value)
    return configs.replaced(section, **{name: value})


@pytest.fixture
def made(tmp_path):
    """Writes what a run that has ended leaves behind."""

    def make(
        name, accuracy=0.99, last=None, result=(), found=None, sections=(), **fields
    ):
        path = tmp_path / name
        path.mkdir()
        config = configs.Config(**{"experiment": "mnist", **fields})
        for field, value in dict(sections).items():
            config = changed(config, field.split("."), value)
        (path / "config.json").write_text(json.dumps(configs.to_dict(config)))
        result = {
            "test": {"accuracy": accuracy},
            "test_of_last": {"accuracy": last or accuracy},
            "seconds": 120.0,
            "num_parameters": 8215568,
            "num_epochs": config.num_epochs,
            **dict(result),
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


def test_epochs_that_were_done_and_classes_that_were_found_are_listed(made, capsys):
    paths = [
        made(f"a{seed}", found=found, result={"epochs_done": epochs}, seed=seed)
        for seed, (found, epochs) in enumerate([(0.96, 3), (0.98, 5)])
    ]
    paths.append(made("b", variant="paper"))
    assert report.main([str(path) for path in paths]) == 0
    lines = capsys.readouterr().out.splitlines()
    head, _, several, one = ([c.strip() for c in x.split("|")[1:-1]] for x in lines[:4])
    assert head[-1] == "classes found, best by validation, %"
    assert (several[3], several[-1]) == ("3, 5", "97.00 ± 1.41")
    assert (one[3], one[-1]) == ("10", "")


def evaluated(path, step=40, checksum="1", **scores):
    """Writes what an evaluation on the run's own images leaves behind."""
    (path / "dataset.json").write_text(
        json.dumps({"splits": {"test": {"num_images": 9, "checksum": "1"}}})
    )
    about = {
        "data": {"num_images": 9, "checksum": checksum},
        "runs": [{"path": str(path), "step": step}],
        "balanced_accuracy": 0.8,
        **scores,
    }
    (path / "figures").mkdir(exist_ok=True)
    (path / "figures" / "evaluation.json").write_text(json.dumps(about))


def labelled(made, name, **options):
    """The folder of a run whose images show different numbers of classes."""
    test = {"step": 40, "accuracy": 0.5, "per_label_accuracy": 0.9}
    return made(name, result={"test": test}, **options)


def test_scores_of_evaluated_runs_are_averaged(made, capsys):
    paths = [labelled(made, f"a{seed}", seed=seed) for seed in (0, 1)]
    for path, score in zip(paths, (0.6, 0.7), strict=True):
        evaluated(path, balanced_accuracy=score, mean_average_precision=score - 0.1)
    assert report.main([*map(str, paths)]) == 0
    out = capsys.readouterr().out
    heads = ("labels right", "balanced accuracy", "average precision")
    assert out.splitlines()[0].endswith(
        "".join(f"| {head}, best by validation, % " for head in heads) + "|"
    )
    (row,) = rows(out)
    assert row[-3:] == ["90.00 ± 0.00", "65.00 ± 7.07", "55.00 ± 7.07"]
    assert "capsjax.evaluate" not in out


@pytest.mark.parametrize(
    "other",
    [
        {"step": 39},
        {"checksum": "2"},
        {"balanced_accuracy": None},
        {"balanced_accuracy": "0.8"},
        {"runs": [{"step": 40}, {"step": 40}]},
        {"runs": 40},
        {"data": None},
    ],
    ids=str,
)
def test_scores_of_another_step_or_of_other_images_are_not_shown(made, capsys, other):
    paths = [labelled(made, f"a{seed}", seed=seed) for seed in (0, 1)]
    evaluated(paths[0], **other)
    assert report.main([*map(str, paths)]) == 0
    out = capsys.readouterr().out
    assert "| balanced accuracy" not in out
    (hint,) = (line for line in out.splitlines() if "capsjax.evaluate" in line)
    assert hint.endswith(f"capsjax.evaluate --workdir {paths[0]}, and so on.")
    # A mean over some of the seeds would not compare with the other columns.
    evaluated(paths[0])
    assert report.main([*map(str, paths)]) == 0
    out = capsys.readouterr().out
    assert rows(out)[0][-2:] == ["90.00 ± 0.00", ""]
    assert f"capsjax.evaluate --workdir {paths[1]}." in out


def test_balanced_accuracy_is_compared_where_a_run_has_class_weights(made, capsys):
    test = {"test": {"step": 40, "accuracy": 0.9}}
    plain = made("a", result=test)
    weighted = made(
        "b", result=test, variant="b", sections={"data.class_weights": "balanced"}
    )
    for path in (plain, weighted):
        evaluated(path)
    assert report.main([str(plain)]) == 0
    assert "balanced" not in capsys.readouterr().out
    assert report.main([str(plain), str(weighted)]) == 0
    assert [row[-1] for row in rows(capsys.readouterr().out)] == ["80.00", "80.00"]


def test_each_run_is_opened_with_the_file_that_has_its_classes(made, tmp_path, capsys):
    words, paths = [], []
    for name in ("First", "Second"):
        file = tmp_path / f"{name}.py"
        file.write_text(
            "import dataclasses\nfrom capsjax.config import Adam, Config\n"
            f"@dataclasses.dataclass(frozen=True)\nclass {name}(Adam): pass\n"
            f"def get_config(variant=''): return Config(optimizer={name}())\n"
        )
        words += ["--config", str(file)]
        own = experiment(str(file))
        paths.append(str(made(name, experiment=name, optimizer=own.optimizer)))
    for order in (paths, paths[::-1]):
        assert report.main([*words, *order]) == 0
        assert "| First" in capsys.readouterr().out
    assert report.main([*words[:2], *paths]) == 1
    assert "optimizer is Second in the run, and First in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("door", "words"),
    [
        (evaluate, ["--workdir", "a", "--workdir", "b"]),
        (evaluate, ["--workdir", "a", "--data", "b.npz", "--data=c.npz"]),
        (predict, ["1.png", "--workdir", "a", "--config", "b.py", "--config=c.py"]),
        (report, ["a", "--figure", "b.png", "--figure", "c.png"]),
    ],
)
def test_an_option_with_one_value_is_given_once(door, words, capsys):
    with pytest.raises(SystemExit):
        door.main(words)
    assert "is given twice" in capsys.readouterr().err


def test_runs_of_another_configuration_are_not_averaged(made, capsys):
    paths = [made("a"), made("b", seed=1, batch_size=64)]
    assert report.main([str(path) for path in paths]) == 1
    error = capsys.readouterr().err
    assert "batch_size is 128 there, 64 here" in error
    assert "seed" not in error.split("averaged")[1]


def test_what_does_not_change_what_is_learnt_does_not_matter(made):
    runs = [
        comparison.read_run(made("a")),
        comparison.read_run(made("b", seed=1, eval_batch_size=7, max_gigabytes=3.0)),
    ]
    assert [len(group) for group in comparison.gather(runs).values()] == [2]


def test_one_run_is_not_counted_twice(made):
    runs = [comparison.read_run(made("a")), comparison.read_run(made("b"))]
    with pytest.raises(WorkdirError, match="same seed, 0"):
        comparison.gather(runs)


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
def test_a_result_of_other_types_is_refused(made, capsys, name, value):
    path = made("a")
    result = json.loads((path / "result.json").read_text())
    (result["test"] if name == "accuracy" else result)[name] = value
    (path / "result.json").write_text(json.dumps(result))
    assert report.main([str(path)]) == 1
    (message,) = capsys.readouterr().err.splitlines()
    assert "damaged" in message


def test_the_curves_are_drawn(made, tmp_path):
    figure = tmp_path / "curves.png"
    paths = [made("a"), made("b", seed=1), made("c", variant="paper")]
    assert report.main([*map(str, paths), "--figure", str(figure)]) == 0
    assert figure.stat().st_size > 1000


def rows(text):
    """The cells of the lines below the head."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


def test_folds_are_averaged_where_the_command_names_their_field(made, capsys):
    paths = [
        str(made(f"fold{k}", 0.8 + k / 10, sections={"data.path": f"fold{k}"}))
        for k in range(2)
    ]
    assert report.main(paths) == 1
    assert "data.path is 'fold0' there, 'fold1' here" in capsys.readouterr().err
    assert report.main([*paths, "--average", "data.path"]) == 0
    (row,) = rows(capsys.readouterr().out)
    assert (row[0], row[2], row[4]) == ("mnist", "0", "85.00 ± 7.07")
    assert report.main([*paths, paths[0], "--average=data.path"]) == 1
    error = capsys.readouterr().err
    assert "have the same seed, 0, data.path fold0: they are no two samples" in error


def test_a_sweep_has_a_row_for_each_value(made, capsys):
    paths = [
        made(
            f"{k}{seed}",
            0.9 + k / 100,
            seed=seed,
            sections={
                "model.routing.num_iterations": k,
                "optimizer.learning_rate": 0.1 / k,
            },
        )
        for k in (2, 10, 1)
        for seed in (0, 1)
    ]
    rounds = "model.routing.num_iterations"
    fields = ["--by", rounds, "--by=config.optimizer.learning_rate"]
    assert report.main([*map(str, paths), *fields]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"| recipe | {rounds} | config.optimizer.learning")
    assert [row[1:3] for row in rows(out)] == [
        *(["1", "0.1"], ["2", "0.05"], ["10", "0.01"])
    ]
    assert [row[6] for row in rows(out)] == [
        *("91.00 ± 0.00", "92.00 ± 0.00", "100.00 ± 0.00")
    ]


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("model.rounds", "config.model has no field rounds. It has kind, conv_feat"),
        ("model", "config.model is a section: name one of kind, conv_features"),
        ("seed.x", "config.seed has no field x."),
    ],
)
def test_a_field_that_is_not_there_is_refused(made, capsys, field, message):
    assert report.main([str(made("a")), "--by", field]) == 1
    assert message in capsys.readouterr().err


def history(*stages):
    defaults = {"bad_numbers": "stop", "eval_batch_size": 200}
    return [{"step": s, "num_epochs": n, **defaults} for s, n in stages]


def test_an_extended_run_is_not_averaged_with_a_straight_one(made, capsys):
    paths = []
    for k, stages in enumerate([[(0, 10)], [(0, 2), (40, 10)], [(0, 2), (40, 10)]]):
        paths.append(made(f"a{k}", 0.9 + k / 100, seed=k))
        text = json.dumps(history(*stages))
        (paths[-1] / "history.json").write_text(text)
    assert report.main([*map(str, paths)]) == 0
    out = capsys.readouterr().out
    straight, extended = rows(out)
    assert (straight[0], straight[4]) == ("mnist", "90.00")
    assert extended[0] == "mnist (num_epochs 2 until step 40)"
    assert (extended[2], extended[4]) == ("1, 2", "91.50 ± 0.71")
    assert f"Not averaged with runs in which nothing changed: {paths[1]}" in out


def test_where_no_step_depends_on_the_epochs_to_come_an_extension_is_the_same(made):
    runs = []
    for k, stages in enumerate([[(0, 10)], [(0, 2), (40, 10)]]):
        path = made(f"a{k}", seed=k, sections={"optimizer.schedule": "constant"})
        (path / "history.json").write_text(json.dumps(history(*stages)))
        runs.append(comparison.read_run(path))
    assert [len(group) for group in comparison.gather(runs).values()] == [2]


def test_an_extension_before_there_was_a_history_is_seen_in_the_result(made):
    before = {"num_epochs": 2, "test_of_last": {"step": 40}}
    message = {
        "tested_before": [before],
        "test_of_last": {"step": 200, "accuracy": 0.99},
    }
    run = comparison.read_run(made("a", result=message))
    assert run.changes == ("num_epochs 2 until step 40",)


def test_runs_that_were_not_tested_have_validation_accuracies(made, capsys):
    untested = {"test": None, "test_of_last": None, "validation": {"accuracy": 0.75}}
    paths = [
        made("a", variant="paper", result={"validation": {"accuracy": 0.5}}),
        *(made(f"b{k}", result=untested, seed=k, test=False) for k in range(2)),
    ]
    assert report.main([*map(str, paths)]) == 0
    out = capsys.readouterr().out
    assert "| validation accuracy, best, % |" in out
    tested, not_tested = rows(out)
    assert (tested[4], tested[-1]) == ("99.00", "50.00")
    assert (not_tested[4], not_tested[5], not_tested[-1]) == ("", "", "75.00 ± 0.00")
    assert "were not tested (config.test)" in out


def test_the_same_images_elsewhere_are_the_same(made):
    runs = []
    for k, place in enumerate(("photos", "/moved/photos")):
        path = made(f"a{k}", seed=k, sections={"data.path": place})
        splits = {"train": {"checksum": "1"}, "test": {"fingerprint": "2"}}
        (path / "dataset.json").write_text(json.dumps({"splits": splits}))
        runs.append(comparison.read_run(path))
    assert [len(group) for group in comparison.gather(runs).values()] == [2]


def test_an_ascii_terminal_gets_the_table_and_a_hostile_name_is_harmless(
    made, monkeypatch
):
    class Ascii(io.StringIO):
        encoding = property(lambda self: "ascii")

    name = "\x1b]0;title\x07|é\n"
    paths = [
        made(f"a{seed}", accuracy, seed=seed, sections={"data.name": name})
        for seed, accuracy in enumerate((0.98, 0.99))
    ]
    monkeypatch.setattr("sys.stdout", Ascii())
    assert report.main([*map(str, paths)]) == 0
    out = sys.stdout.getvalue()
    assert "| 98.50 +- 0.71 |" in out
    assert r"| \x1b]0;title\x07\|\xe9\n |" in out
    assert "\n+- is the sample standard deviation" in out


def test_the_figure_is_drawn_also_where_nobody_reads_the_table(
    made, tmp_path, monkeypatch, capsys
):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        figure = tmp_path / "curves.png"
        assert report.main([str(made("a")), "--figure", str(figure)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    message = "can't write the results: No space left on device"
    assert line == f"capsjax.report: error: {message}"
    assert figure.stat().st_size > 1000
