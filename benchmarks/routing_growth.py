"""Measures how dynamic routing grows with every size: ``routing.py --grow``."""

import statistics
from collections.abc import Iterable
from typing import Any

import numpy as np
from routing import (
    FORMS,
    PLAIN,
    VOTES_FREE,
    Problem,
    compile_program,
    environment,
    measure,
    measure_machine,
    print_table,
)


def grow(problem: Problem, repeats: int) -> Iterable[dict[str, Any]]:
    """Yields a record for each size, axis and form, with poses and gradients."""
    machine = measure_machine(repeats)
    for axis in Problem._fields:
        base = getattr(problem, axis)
        sizes = [base // 4, base // 2, base, 2 * base]
        sizes = (2, 3, 5, 9) if axis == "rounds" else sizes
        programs = {
            (name, size): compile_program(
                FORMS[name], problem._replace(**{axis: size}), backward=True
            )
            for name in (PLAIN, VOTES_FREE)
            for size in sizes
        }
        for (name, size), times in measure(programs, repeats).items():
            sized = problem._replace(**{axis: size})
            work = FORMS[name].multiplications(sized, backward=True)
            yield {
                "axis": axis,
                "size": size,
                "form": name,
                "median_ms": statistics.median(times),
                "min_ms": min(times),
                "max_ms": max(times),
                "limit_ms": 1e3 * work / machine.multiplications_per_second,
                "temporary_bytes": programs[name, size].temporary_bytes,
                "compile_seconds": programs[name, size].compile_seconds,
                "machine": machine._asdict(),
                "problem": problem._asdict(),
                "environment": environment(),
            }


def curves(records: list[dict[str, Any]], value: str):
    """Yields axis, form, sizes and values of every curve."""
    for axis in Problem._fields:
        for form in (PLAIN, VOTES_FREE):
            own = [r for r in records if (r["axis"], r["form"]) == (axis, form)]
            yield axis, form, [r["size"] for r in own], [r[value] for r in own]


def print_growth(records: list[dict[str, Any]]) -> None:
    def rows():
        columns = ("median_ms", "temporary_bytes", "limit_ms", "compile_seconds")
        for parts in zip(*(curves(records, name) for name in columns), strict=True):
            axis, form, sizes, ms = parts[0]
            megabytes = [t / 1e6 for t in parts[1][3]]
            reached = [100 * x / y for x, y in zip(parts[2][3], ms, strict=True)]
            slopes = [
                np.polyfit(np.log(sizes), np.log(y), 1)[0] for y in (ms, megabytes)
            ]
            numbers = (sizes, ms, megabytes, reached)
            lists = [", ".join(f"{n:.0f}" for n in x) for x in numbers]
            lists.append(", ".join(f"{n:.1f}" for n in parts[3][3]))
            yield " | ".join([axis, form, *lists, *(f"{x:.2f}" for x in slopes)])

    print("Cost is about size ** slope, forward + backward.\n")
    print_table(
        "axis | form | sizes | ms | temporary MB | of the product's rate, % "
        "| compile s | slope, ms | slope, MB",
        rows(),
    )


def draw_growth(records: list[dict[str, Any]], path: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 6), layout="constrained")
    grid = figure.subplots(2, len(Problem._fields), sharey="row", sharex="col")
    values = {
        "median_ms": ("forward + backward, ms", 1),
        "temporary_bytes": ("temporary memory, MB", 1e-6),
    }
    for row, (value, (label, unit)) in zip(grid, values.items(), strict=True):
        row[0].set_ylabel(label)
        for axis, form, sizes, numbers in curves(records, value):
            plot = row[Problem._fields.index(axis)]
            style = "s--" if form == PLAIN else "o-"
            plot.loglog(sizes, [unit * x for x in numbers], style, label=form)
            plot.set_xticks(sizes, sizes)
            plot.set_xticks([], minor=True)
            plot.grid(visible=True, axis="y", alpha=0.3)
    for plot, axis in zip(grid[-1], Problem._fields, strict=True):
        plot.set_xlabel(axis)
    grid[0][0].legend()
    figure.savefig(path, dpi=100)
