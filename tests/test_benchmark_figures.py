"""docs/performance.md and its pictures have the numbers that were recorded."""

import json
import re
import runpy

import pytest
from places import ROOT

RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "docs" / "figures" / "benchmarks.py"))


@pytest.fixture(scope="module")
def gpu():
    names = [RESULTS / f"h100-{commit}.json" for commit in ("cdcf75a", "c68324d")]
    return [json.loads(name.read_text()) for name in names]


def test_the_page_has_the_recorded_numbers_of_a_gpu(script, gpu):
    page = (ROOT / "docs" / "performance.md").read_text()
    step = script["gpu_step"](gpu)
    assert len(step) == 4
    (row,) = re.findall(r"^\| step, batch 2048.*$", page, re.M)
    assert all(f"{value:,.0f}" in row for value in step.values())
    for size, forms in script["gpu_routing"](gpu[-1]).items():
        (row,) = re.findall(rf"^\| {' '.join(size.split())} \|.*$", page, re.M)
        expected = ", ".join(f"{seconds:.2f}" for seconds, _ in forms.values())
        assert row.endswith(f"| {expected} |")


def test_bars_are_the_recorded_numbers(script, gpu):
    left, middle, right = script["draw_gpu"](gpu).axes
    step = script["gpu_step"](gpu)
    assert [bar.get_width() for bar in left.patches] == [*step.values()]
    routing = script["gpu_routing"](gpu[-1])
    for axes, which in ((middle, 0), (right, 1)):
        heights = [
            one[form][which]
            for form in ("votes-free", "votes", "einsum loop")
            for one in routing.values()
        ]
        assert [bar.get_height() for bar in axes.patches] == heights


def test_curves_of_the_step_go_by_batch(script):
    def record(name, batch, rate, table="train"):
        options = {"batch": batch}
        about = {"table": table, "contender": name, "options": options, "images": batch}
        return about | {"images_per_second": rate, "peak_mb": 10 * batch}

    records = [
        record("capsjax float32", 128, 9),
        record("capsjax float32", 50, 7),
        record("capsjax float32, 2 devices", 50, 8),
        record("torch float32", 50, 3),
        record("torch float32", 50, 99, table="inference"),
        {"table": "train", "contender": "memory", "options": {}},
    ]
    speed, memory = script["draw_step"](records).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in speed.lines}
    assert lines == {
        "capsjax float32": [[50, 7], [128, 9]],
        "PyTorch float32": [[50, 3]],
    }
    assert memory.lines[0].get_xydata().tolist() == [[50, 500], [128, 1280]]


def test_minutes_of_a_run_are_those_of_its_training_steps(script, tmp_path):
    metrics = [
        {"kind": "train", "step": 6, "images_per_second": 1},
        {"kind": "train", "step": 12, "images_per_second": 2},
        {"kind": "validation", "step": 12, "accuracy": 0.75},
    ]
    text = "".join(json.dumps(line) + "\n" for line in metrics)
    (tmp_path / "metrics.jsonl").write_text(text)
    (tmp_path / "config.json").write_text('{"batch_size": 10}')
    about = {"command": "a", "commit": "b", "device": "c", "versions": {}}
    (tmp_path / "result.json").write_text(json.dumps(about))
    record = script["record_run"](tmp_path)
    assert record == {"run": tmp_path.name, "points": [(1.5, 25.0)], **about}
    (axes,) = script["draw_errors"]([record]).axes
    assert axes.lines[0].get_xydata().tolist() == [[1.5, 25.0]]
