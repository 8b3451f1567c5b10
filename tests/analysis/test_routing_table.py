"""The table of routings from small results."""

import json
import sys
import types

import pytest
from places import ROOT
from scipy import special
from tiny import tiny, tiny_model

from capsjax import EMRouting, report
from capsjax.analysis.routing_table import AFFINE, p_value, read, table
from capsjax.storage.files import WorkdirError


def line(row, seed, error, affine=20.0, **config):
    """A run reduced to its numbers; errors in percent."""
    evaluations = {
        "test": {
            "uniform_swap": {"uniform_accuracy": 0.5},
            "routing": {
                "class_caps": {
                    **{"inputs": 576, "dead_inputs": 144, "t_score": 0.25},
                    **{"outputs": 10, "starved_outputs": 1},
                }
            },
        },
        "affine_mnist_28": {"accuracy": 1 - affine / 100},
    }
    return {
        "row": row,
        "seed": seed,
        "config": {"seed": seed, "num_epochs": 10, **config},
        "result": {
            "num_parameters": 1071808,
            "test": {"accuracy": 1 - error / 100},
        },
        "evaluations": evaluations,
    }


def speed(row):
    about = {"train_images_per_second": 1234.5, "images_per_second": 5000.0}
    return {"row": row, "speed": about | {"train_temporary_bytes": 2.5e8}}


def cells(lines):
    """The cells of a table's lines, by the first one."""
    rows = [
        [cell.strip() for cell in one.split("|")[1:-1]] for one in lines if "|" in one
    ]
    return {row[0]: row[1:] for row in rows}


def test_a_row_has_means_deviations_and_speeds_and_the_columns_that_are_known():
    records = [
        *(line("b", seed, error) for seed, error in enumerate((0.5, 0.6, 0.7))),
        line("a", 0, 0.65, 19.0),
        speed("b"),
        speed("never trained"),
    ]
    found = cells(table(records))
    assert [*found] == ["routing", "---", "b", "a"]
    assert found["routing"] == [
        *("seeds", "parameters", "test error, %", "affine error, %"),
        *("error with equal couplings, %", "T-score"),
        *("dead inputs, %", "starved outputs, %"),
        *("images/s, training", "images/s, inference", "temporary MB, training"),
    ]
    assert found["b"] == [
        *("0, 1, 2", "1,071,808", "**0.60 ± 0.10**", "20.00 ± 0.00 ?", "50.00", "0.25"),
        *("25.0", "10.0"),
        *("1,234", "5,000", "250"),
    ]
    assert found["a"] == [
        *("0", "1,071,808", "0.65 ?", "**19.00**", "50.00", "0.25"),
        *("25.0", "10.0", "", "", ""),
    ]


def test_differences_within_the_noise_are_marked_in_words():
    runs = {
        "best": (0.50, 0.52, 0.54),
        "near": (0.52, 0.56, 0.58),  # p is 0.20.
        "far": (0.62, 0.64, 0.66),  # p is 0.002.
        "wild": (0.50, 0.70, 0.90),  # p is 0.26: its seeds differ much.
    }
    lines = table(
        [
            line(row, k, one)
            for row, errors in runs.items()
            for k, one in enumerate(errors)
        ]
    )
    found = {row: one[2] for row, one in cells(lines).items() if row in runs}
    assert found == {
        "best": "**0.52 ± 0.02**",
        "near": "0.55 ± 0.03 ≈",
        "far": "0.64 ± 0.02",
        "wild": "0.70 ± 0.20 ≈",
    }
    notes = [one for one in lines if one and not one.startswith("|")]
    assert [one.split(":")[0] for one in notes] == ["**Bold**", "≈", "±"]
    assert "within the noise" in notes[1]


def test_the_p_value_is_welchs():
    a, b = (0.50, 0.52, 0.54), (0.50, 0.70, 0.90)
    # Worked out by hand: variances of the means, t, and degrees of freedom.
    va, vb = 0.0004 / 3, 0.04 / 3
    t, free = 0.18 / (va + vb) ** 0.5, (va + vb) ** 2 / ((va**2 + vb**2) / 2)
    # Student's distribution as an incomplete beta function.
    expected = special.betainc(free / 2, 0.5, free / (free + t**2))
    assert p_value(a, b) == pytest.approx(expected, rel=1e-6)
    assert p_value(a, b) == pytest.approx(0.2587, abs=1e-3)
    assert p_value((1.0, 1.0), (1.0, 1.0)) == 1
    assert p_value((1.0, 1.0), (2.0, 2.0)) == 0
    assert p_value((1.0,), (1.0, 2.0)) is None


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([line("a", 0, 1), line("a", 0, 2)], "two runs of a, seed 0: they are no two"),
        (
            [line("a", 0, 1), line("a", 1, 2, num_epochs=5)],
            "runs of a, seeds 0 and 1, differ: num_epochs is 10 there, 5 here",
        ),
        ([speed("a")], "no finished run"),
    ],
)
def test_runs_that_are_no_samples_of_one_row_are_refused(records, message):
    with pytest.raises(WorkdirError, match=message):
        table(records)


def test_the_command_reads_files_of_lines_and_skips_a_search(tmp_path, capsys):
    path = tmp_path / "results.jsonl"
    searched = {"row": "a", "choice": {}, "loss": 0.1}
    lines = [line("a", 0, 0.5), searched, speed("a")]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert report.main(["--table", "routings", str(path)]) == 0
    assert "| a | 0 | 1,071,808 | **0.50** |" in capsys.readouterr().out
    path.write_text("no lines")
    assert report.main(["--table", "routings", str(path)]) == 1
    assert "has no lines of results" in capsys.readouterr().err


@pytest.mark.variant
def test_the_driver_keeps_each_run_once_and_a_table_is_made_of_it(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import routings_runs

    def get_config(row):
        config = tiny(experiment="routings", variant=row)
        config.model = tiny_model(routing=EMRouting())
        return config

    rows = types.SimpleNamespace(ROWS=["em_2"], get_config=get_config)
    monkeypatch.setattr(routings_runs, "experiment", lambda: rows)
    path = tmp_path / "runs.jsonl"
    arguments = ["--folder", str(tmp_path), "--results", str(path)]
    monkeypatch.setattr(sys, "argv", ["runs", "--seeds", "4", *arguments])
    for _ in range(2):
        routings_runs.main()
    found = read([path])
    assert [(one["row"], one["seed"]) for one in found] == [("em_2", 4)]
    assert AFFINE in found[0]["evaluations"]
    assert len(path.read_text()) < 20_000
    # The folder of a run has the same numbers.
    (folder,) = read([tmp_path / "routings-em_2-seed4"])
    assert json.loads(json.dumps(folder)) == found[0]
    capsys.readouterr()
    assert report.main(["--table", "routings", str(path)]) == 0
    assert "| em_2 | 4 | 30,804 |" in capsys.readouterr().out
