"""What ``benchmarks/accelerator.py`` keeps when its parts fail, hang or are right."""

import concurrent.futures
import json
import os
import signal
import sys

import numpy as np
import pytest
from places import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import accelerator

    return accelerator


def line(**record):
    return f"printf '%s\\n' '{json.dumps(record)}' >> records.jsonl"


def run(accelerator, monkeypatch, folder, scripts, *options):
    """Runs shell scripts for parts; returns the exit code and the JSON file."""
    monkeypatch.setattr(
        accelerator,
        "command_of",
        lambda name, _, output, *__: ["sh", "-c", f"cd {output}; {scripts[name]}"],
    )
    argv = ["--output", str(folder), "--parts", *scripts, *options]
    code = accelerator.main(argv)
    return code, json.loads((folder / "accelerator.json").read_text())


ABOUT = line(part="ceilings", about={"kind": "NVIDIA H100 80GB HBM3"})
COPY = line(part="ceilings", point="copy", seconds=1.0, bytes_per_second=3e12)


def test_what_was_measured_is_kept_when_other_parts_fail_and_hang(
    accelerator, monkeypatch, tmp_path, capsys
):
    scripts = {
        "correctness": "echo no such library; exit 3",
        "ceilings": "; ".join([ABOUT, line(part="ceilings", points=["copy"]), COPY]),
        "step": "; ".join(
            [
                line(part="step", points=["a", "b", "c", "d"]),
                line(part="step", began="a"),
                line(part="step", point="a", error="ValueError: too | large"),
                line(part="step", began="b"),
                line(part="step", point="b", kernels=[]),
                line(part="step", began="c"),
                "printf '{torn' >> records.jsonl",
                # It leaves a process behind that ignores what ends the first.
                "(trap '' HUP TERM; sleep 1000) & sleep 1000",
            ]
        ),
        "plain": line(part="plain", note="after the torn line"),
    }
    code, result = run(accelerator, monkeypatch, tmp_path, scripts, "--seconds", "6")
    assert code == 1
    parts = result["parts"]
    assert parts["correctness"]["ended"] == "ended with 3"
    assert parts["correctness"]["failures"] == [
        {"point": None, "error": "ended with 3: no such library"}
    ]
    assert parts["ceilings"]["failures"] == parts["ceilings"]["left"] == []
    assert parts["step"]["ended"].startswith("killed after")
    assert parts["step"]["failures"] == [
        {"point": "a", "error": "ValueError: too | large"},
        {"point": "c", "error": parts["step"]["ended"]},
    ]
    assert parts["step"]["left"] == ["d"]
    assert parts["plain"]["ended"] == "done"
    out = capsys.readouterr().out
    assert "| ceilings | copy | 3,000 GB/s, read and written |" in out
    assert "| step | a | FAILED: ValueError: too / large |" in out
    assert "| plain |  | after the torn line |" in out
    assert "| step | left for want of time | d |" in out
    assert "not measured (at least 40,000 images/s)" in out


def test_it_succeeds_when_nothing_fails_and_fails_when_a_number_is_wrong(
    accelerator, monkeypatch, tmp_path, capsys
):
    figures = {"float32": {"value": 1e-7, "gradient": "nan"}}
    right, wrong = (
        line(part="correctness", point="squash", ok=ok, **figures)
        for ok in (True, False)
    )
    assert run(accelerator, monkeypatch, tmp_path, {"correctness": right})[0] == 0
    assert "| squash | ok: float32 1e-07 nan |" in capsys.readouterr().out
    code, result = run(accelerator, monkeypatch, tmp_path, {"correctness": wrong})
    assert code == 1
    assert "| squash | WRONG: float32 1e-07 nan |" in capsys.readouterr().out
    assert result["parts"]["correctness"]["failures"] == [
        {"point": "squash", "error": "the numbers are wrong"}
    ]


def test_ctrl_c_ends_the_parts_and_what_they_started(
    accelerator, monkeypatch, tmp_path
):
    def interrupted(*_):
        os.kill(os.getpid(), signal.SIGINT)

    # The first part has ended when Ctrl-C comes, and the second begins.
    monkeypatch.setattr(accelerator, "collect", interrupted)
    alive = "echo $$ > pids; sleep 1000"
    scripts = {"ceilings": "true", "step": alive, "plain": "touch began"}
    with pytest.raises(KeyboardInterrupt):
        run(accelerator, monkeypatch, tmp_path, scripts)
    assert not (tmp_path / "began").exists()
    path = tmp_path / "pids"
    for pid in path.read_text().split() if path.exists() else ():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_a_part_goes_on_after_a_point_that_fails_until_its_time_is_over(
    accelerator, tmp_path
):
    from accelerator_parts.points import Part

    part = Part(
        *("step", tmp_path / "records.jsonl", tmp_path),
        seconds=1000,
        quick=True,
        has_runs=False,
        torch_python=sys.executable,
    )

    def end():
        part.end = 0
        return {"worst": float("inf")}

    part.run({"bad": lambda: 1 // 0, "last": end, "late": dict})
    records = accelerator.read_records(part.records)
    assert records[0] == {"part": "step", "points": ["bad", "last", "late"]}
    assert records[2]["error"].startswith("ZeroDivisionError")
    assert "1 // 0" in records[2]["traceback"]
    assert (records[4]["point"], records[4]["worst"]) == ("last", "inf")
    run = {"ended": "done", "printed": "", "seconds": 1}
    collected = accelerator.collect("step", run, records)
    assert collected["left"] == ["late"]
    assert [failure["point"] for failure in collected["failures"]] == ["bad"]


def test_targets_compare_what_was_measured(accelerator):
    from accelerator_parts.table import targets

    def points(**named):
        return {"records": [{"point": n, **r} for n, r in named.items()]}

    def rate(images, dtype, batch=2048):
        return {"images_per_second": images, "dtype": dtype, "batch": batch}

    forms = {"votes-free": {"seconds": 2.4}, "votes": {"seconds": 2.0}}
    forms["einsum loop"] = {"error": "RESOURCE_EXHAUSTED"}
    result = {
        "parts": {
            "step": points(
                a=rate(120_000, "bfloat16"),
                b=rate(30_000, "float32"),
                c=rate(35_000, "bfloat16", 128),
            ),
            "torch": points(
                eager=rate(999_999, "bfloat16"), compiled=rate(60_000, "bfloat16")
            ),
            "plain": points(
                a={"seconds_after_compilation": 29.0, "test": {"accuracy": 0.9962}}
            ),
            "routing": points(a={"forms": forms}),
        }
    }
    assert dict(targets(result)) == {
        "bfloat16, best batch": "met: 1.2e+05 images/s (at least 100,000 images/s)",
        "float32, best batch": "MISSED: 3e+04 images/s (at least 50,000 images/s)",
        "batch 128": "MISSED: 3.5e+04 images/s (at least 40,000 images/s)",
        "bfloat16 by compiled PyTorch": "met: 2 times (at least 1.5 times)",
        "float32 by compiled PyTorch": "not measured (at least 1.5 times)",
        "plain": "met: 29 s (at most 30 s)",
        "plain, test error": "met: 0.0038  (at most 0.0047)",
        "votes-free by the best other form, worst point": (
            "MISSED: 1.2 times (at most 1.1 times)"
        ),
    }


@pytest.mark.parametrize(
    ("value", "small", "is_ok"),
    [(1, 1e-3, True), (1.01, 1e-3, False), (1, 2e-3, False), (1, np.nan, False)],
)
def test_a_wrong_array_or_no_number_is_no_rounding(accelerator, value, small, is_ok):
    from accelerator_parts.correctness import _errors

    def done(value, small):
        future = concurrent.futures.Future()
        gradient = {"large": np.full(9, 1e3), "small": np.full(9, small)}
        future.set_result((np.full(3, value), (gradient,)))
        return future

    futures = {"reference": done(1.0, 1e-3), "float32 highest": done(value, small)}
    assert _errors(futures)["ok"] == is_ok
