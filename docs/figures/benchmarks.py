"""Draws the tables of docs/performance.md from what the benchmarks recorded.

    python docs/figures/benchmarks.py

Draws what is in benchmarks/results, and names the command that records what is not:

gpu.png     benchmarks/accelerator.py: the step and the routing on a GPU
step.png    benchmarks/train_step.py --peers: speed and memory by batch
errors.png  runs that ``--record RUN...`` added: validation error by minutes of training
"""

import argparse
import json
import pathlib

from matplotlib.figure import Figure

FIGURES = pathlib.Path(__file__).resolve().parent
RESULTS = FIGURES.parents[1] / "benchmarks" / "results"
STEP, ERRORS = RESULTS / "train_step.jsonl", RESULTS / "errors.jsonl"
COMMANDS = {
    STEP: "python benchmarks/train_step.py --peers --tables train --json "
    "benchmarks/results/train_step.jsonl",
    ERRORS: "python docs/figures/benchmarks.py --record RUN",
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def lines(path: pathlib.Path) -> list[dict]:
    """Reads one JSON object a line; none without the file."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


# ---- a GPU


def gpu_step(results: list[dict]) -> dict[str, float]:
    """Returns images a second of steps of 2048 images in bfloat16, by program."""
    found = {}
    for result in results:
        for part, name in (("step", "capsjax"), ("torch", "PyTorch")):
            for record in result["parts"].get(part, {"records": ()})["records"]:
                point = record.get("point", "")
                if not point.endswith("bfloat16, batch 2048"):
                    continue
                of = {"step": result["commit"][:7], "torch": point.split(",")[0]}[part]
                found[f"{name}, {of}"] = record["images_per_second"]
    return found


def gpu_routing(result: dict) -> dict[str, dict[str, tuple[float, float]]]:
    """Returns milliseconds and temporary megabytes, with gradient, by size and form."""
    return {
        f"{record['problem']['batch']:,} x\n{record['problem']['i']:,}": {
            form: (1e3 * one["seconds"], one["temporary_bytes"] / 1e6)
            for form, one in record["forms"].items()
        }
        for record in result["parts"]["routing"]["records"]
        if record.get("backward")
    }


def draw_gpu(results: list[dict]) -> Figure:
    """Draws bars: the step beside PyTorch, and three forms of the routing."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    step = gpu_step(results)
    colours = [COLOURS[name.startswith("PyTorch")] for name in step]
    bars = left.barh(list(step), list(step.values()), color=colours)
    left.bar_label(bars, [f"{value:,.0f}" for value in step.values()], padding=3)
    left.set(title="Step of 2,048 images, bfloat16", xlabel="images a second")
    left.set_xlim(right=1.3 * max(step.values()))
    left.invert_yaxis()
    routing = gpu_routing(results[-1])
    forms = list(next(iter(routing.values())))
    for axes, which, label in (
        (middle, 0, "milliseconds"),
        (right, 1, "temporary megabytes"),
    ):
        for n, form in enumerate(forms):
            place = [k + 0.27 * (n - 1) for k in range(len(routing))]
            heights = [one[form][which] for one in routing.values()]
            axes.bar(place, heights, 0.25, color=COLOURS[n], label=form)
        axes.set_xticks(range(len(routing)), list(routing))
        axes.set(title="Routing with its gradient, float32", ylabel=label)
        axes.set_xlabel("batch x inputs")
    middle.legend(frameon=False)
    return finish(figure)


# ---- the step on a CPU


def draw_step(records: list[dict]) -> Figure:
    """Draws curves by batch: images a second, and the largest memory."""
    curves = {}
    for record in records:
        # Variants of ours that are no default stay in the tables.
        is_variant = any(x in record["contender"] for x in (" devices", "1 step"))
        if record["table"] == "train" and "images" in record and not is_variant:
            # Plain JAX can't take more than a few images, whatever the batch.
            name = record["contender"].split(", batch")[0].replace("torch", "PyTorch")
            point = (record["images"], record["images_per_second"], record["peak_mb"])
            curves.setdefault(name, []).append(point)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    both = figure.subplots(1, 2)
    for axes, which, label in zip(
        both, (1, 2), ("images a second", "peak memory, MB"), strict=True
    ):
        for n, (name, points) in enumerate(curves.items()):
            points = sorted(points)
            axes.plot(
                [point[0] for point in points],
                [point[which] for point in points],
                "o-" if name.startswith("capsjax") else "s--",
                color=COLOURS[n % len(COLOURS)] if n < len(COLOURS) else "black",
                label=name,
            )
        axes.set(xlabel="batch", ylabel=label, ylim=(0, None))
        axes.set_xticks(sorted({point[0] for one in curves.values() for point in one}))
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside right")
    return finish(figure)


# ---- errors


def record_run(folder: pathlib.Path) -> dict:
    """Returns a run's validation errors in percent, and the minutes until each.

    Minutes are those of training steps, without compilation and validation.
    """
    config = json.loads((folder / "config.json").read_text())
    minutes, before, points = 0.0, 0, []
    for line in lines(folder / "metrics.jsonl"):
        if line["kind"] == "train":
            images = (line["step"] - before) * config["batch_size"]
            minutes += images / line["images_per_second"] / 60
            before = line["step"]
        elif line["kind"] == "validation":
            error = 100 * (1 - line["accuracy"])
            points.append((round(minutes, 3), round(error, 4)))
    result = json.loads((folder / "result.json").read_text())
    about = {name: result[name] for name in ("command", "commit", "device", "versions")}
    return {"run": folder.name, "points": points, **about}


def draw_errors(records: list[dict]) -> Figure:
    """Draws a curve for each run."""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    for n, record in enumerate(records):
        minutes, errors = zip(*record["points"], strict=True)
        axes.plot(
            minutes, errors, "o-", color=COLOURS[n % len(COLOURS)], label=record["run"]
        )
    axes.set(xlabel="minutes of training", ylabel="validation errors, %", yscale="log")
    axes.set_yticks([n / 10 * 10**k for k in (0, 1) for n in (1, 2, 3, 5, 7)])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    errors = [error for record in records for _, error in record["points"]]
    axes.set_ylim(0.9 * min(errors), 1.1 * max(errors))
    axes.legend(frameon=False)
    return finish(figure)


def finish(figure: Figure) -> Figure:
    """Removes what a bare chart does not need."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Records runs, then draws everything that is recorded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", nargs="+", type=pathlib.Path, default=[])
    for folder in parser.parse_args().record:
        with ERRORS.open("a") as file:
            print(json.dumps(record_run(folder)), file=file)
    names = sorted(RESULTS.glob("h100-*.json"))
    results = [json.loads(path.read_text()) for path in names]
    # The commit that was measured last comes last.
    results.sort(key=lambda result: result["started"])
    draw_gpu(results).savefig(FIGURES / "gpu.png", dpi=150)
    for path, draw in ((STEP, draw_step), (ERRORS, draw_errors)):
        if records := lines(path):
            name = {STEP: "step.png", ERRORS: "errors.png"}[path]
            draw(records).savefig(FIGURES / name, dpi=150)
        else:
            print(f"{path.name} is not there. To record it: {COMMANDS[path]}")


if __name__ == "__main__":
    main()
