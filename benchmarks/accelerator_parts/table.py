"""The one table: every point's figures beside what the device could do, and targets."""

from collections.abc import Iterator
from typing import Any

Row = tuple[str, str, str]

# On one H100: images a second by type at the best batch, and at batch 128.
RATES = {"bfloat16": 100_000, "float32": 50_000}
RATE_AT_128 = 40_000
TIMES_TORCH = 1.5
PLAIN_SECONDS = 30
# On a CPU 0.38 % (three seeds, sample standard deviation 0.03): three deviations more.
PLAIN_ERROR = 0.0047
TIMES_BEST_FORM = 1.1


def print_table(result: dict[str, Any]) -> None:
    versions = ", ".join(f"{n} {v}" for n, v in result["versions"].items())
    about = f"Commit {result['commit']}; {versions}; {result['machine']}"
    print(f"\n{about}; {device(result)}; {result['seconds']} s\n")
    print("| part | point | figures |\n| --- | --- | --- |")
    for row in rows(result):
        cells = (cell.replace("|", "/").replace("\n", " ") for cell in row)
        print(f"| {' | '.join(cells)} |")


def rows(result: dict[str, Any]) -> Iterator[Row]:
    ceilings = measured(result, "ceilings")
    for part, run in result["parts"].items():
        yield part, "", f"{run['seconds']} s, {run['ended']}"
        for record in run["records"]:
            if "note" in record:
                yield part, "", record["note"]
            if "point" in record and not record.get("error"):
                yield part, record["point"], _figures(part, record, ceilings)
        for failure in run["failures"]:
            yield part, failure["point"] or "", f"FAILED: {failure['error'][:200]}"
        if run["left"]:
            yield part, "left for want of time", ", ".join(run["left"])
    if "H100" in device(result) or "H200" in device(result):
        name = "H100" if "H100" in device(result) else "H200, targets of an H100"
        for point, figures in targets(result):
            yield f"target, {name}", point, figures


def device(result: dict[str, Any]) -> str:
    for part in result["parts"].values():
        for record in part["records"]:
            if "about" in record and "kind" in record["about"]:
                return record["about"]["kind"]
    return "no device seen"


def measured(result: dict[str, Any], part: str) -> dict[str, dict[str, Any]]:
    """The points of a part that have figures, by name."""
    records = result["parts"].get(part, {}).get("records", [])
    return {r["point"]: r for r in records if "point" in r and not r.get("error")}


def floor_seconds(batch: int, dtype: str, ceilings: dict[str, Any]) -> float | None:
    """The least time of a step: of its products, or of its bytes."""
    product, copy = ceilings.get(f"product {dtype}"), ceilings.get("copy")
    if not product or not copy or "step" not in ceilings:
        return None
    least = ceilings["step"]["floor"][dtype]
    moved = batch * least["bytes_of_image"] + least["bytes_of_step"]
    return max(
        batch * least["flop_of_image"] / product["flop_per_second"],
        moved / copy["bytes_per_second"],
    )


def _figures(part: str, record: dict[str, Any], ceilings: dict[str, Any]) -> str:
    if "lowered" in record or "convolutions" in record:
        return "lowered"
    cells = {
        "correctness": _correctness,
        "ceilings": _ceiling,
        "step": _step,
        "routing": _routing,
        "torch": _step,
        "plain": _plain,
    }[part]
    if cells is _step:
        return _step(record, {} if part == "torch" else ceilings)
    return cells(record)


def _correctness(record: dict[str, Any]) -> str:
    verdict = "ok" if record["ok"] else "WRONG"
    skipped = ("part", "point", "point_seconds", "ok")
    cells = []
    for name, value in record.items():
        if name in skipped:
            continue
        if isinstance(value, dict) and "gradient" in value:
            value = " ".join(map(_number, value.values()))
        cells.append(f"{name} {_number(value)}")
    return f"{verdict}: {', '.join(cells)}"


def _ceiling(record: dict[str, Any]) -> str:
    if "floor" in record:
        return "; ".join(
            f"{dtype}: {least['flop_of_image'] / 1e9:.2f} GFLOP and "
            f"{least['bytes_of_image'] / 1e6:.2f} MB an image, "
            f"{least['bytes_of_step'] / 1e6:.0f} MB a step"
            for dtype, least in record["floor"].items()
        )
    if "bytes_per_second" in record:
        return f"{record['bytes_per_second'] / 1e9:,.0f} GB/s, read and written"
    return f"{record['flop_per_second'] / 1e12:,.1f} TFLOP/s"


def _step(record: dict[str, Any], ceilings: dict[str, Any]) -> str:
    if "kernels" in record:
        return "; ".join(
            f"{k['share']:.0%} {k['name'][:60]} ({k['count']})"
            for k in record["kernels"]
        )
    rate, dtype = record["images_per_second"], record["dtype"]
    cells = [f"{rate:,.0f} images/s"]
    if record.get("images_per_second_with_saves"):
        saved = record["images_per_second_with_saves"]
        cells.append(f"{saved:,.0f} with saves")
    floor = floor_seconds(record["batch"], dtype, ceilings)
    if floor is not None:
        share = rate * floor / record["batch"]
        cells.append(f"{share:.0%} of the ceiling ({1e3 * floor:.2f} ms)")
    if record["memory_bytes"]:
        cells.append(f"{record['memory_bytes'] / 1e9:.2f} GB")
    cells.append(f"compiled in {record['compile_seconds']:.1f} s")
    return ", ".join(cells)


def _routing(record: dict[str, Any]) -> str:
    cells = []
    for name, form in record["forms"].items():
        if "seconds" not in form:
            cells.append(f"{name} {form.get('error') or 'left: ' + form['left']}")
            continue
        memory = form["temporary_bytes"] / 1e6
        cells.append(f"{name} {1e3 * form['seconds']:.3f} ms, {memory:,.0f} MB")
    return "; ".join(cells)


def _plain(record: dict[str, Any]) -> str:
    error = 1 - record["test"]["accuracy"]
    return (
        f"test error {error:.2%} after {record['epochs_done']} epochs, "
        f"{record['seconds']:.1f} s, of them compiling {record['compile_seconds']:.1f}"
    )


def _number(value: Any) -> str:
    if isinstance(value, float) and 0 < abs(value) < 0.01:
        return f"{value:.0e}"
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)


# ---- targets


def targets(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What was to be reached, beside what was."""
    step, torch = measured(result, "step"), measured(result, "torch")
    for dtype, wanted in RATES.items():
        best = _best(step, dtype)
        yield f"{dtype}, best batch", _verdict(best, wanted, "images/s")
    at_128 = [r["images_per_second"] for r in _rates(step) if r["batch"] == 128]
    yield "batch 128", _verdict(max(at_128, default=None), RATE_AT_128, "images/s")
    compiled = {name: r for name, r in torch.items() if not name.startswith("eager")}
    for dtype in RATES:
        ours, theirs = _best(step, dtype), _best(compiled, dtype)
        times = ours / theirs if ours and theirs else None
        yield f"{dtype} by compiled PyTorch", _verdict(times, TIMES_TORCH, "times")
    for record in measured(result, "plain").values():
        after = record["seconds_after_compilation"]
        error = 1 - record["test"]["accuracy"]
        yield "plain", _verdict(after, PLAIN_SECONDS, "s", at_most=True)
        yield "plain, test error", _verdict(error, PLAIN_ERROR, "", at_most=True)
    worst = None
    for record in measured(result, "routing").values():
        forms = {n: f["seconds"] for n, f in record["forms"].items() if "seconds" in f}
        if "votes-free" in forms and len(forms) > 1:
            ours = forms.pop("votes-free") / min(forms.values())
            worst = max(ours, worst or 0)
    yield (
        "votes-free by the best other form, worst point",
        _verdict(worst, TIMES_BEST_FORM, "times", at_most=True),
    )


def _rates(points: dict[str, Any]) -> list[dict[str, Any]]:
    return [r for r in points.values() if "images_per_second" in r]


def _best(points: dict[str, Any], dtype: str) -> float | None:
    own = [r["images_per_second"] for r in _rates(points) if r["dtype"] == dtype]
    return max(own, default=None)


def _verdict(
    value: float | None, wanted: float, unit: str, *, at_most: bool = False
) -> str:
    bound = f"{'at most' if at_most else 'at least'} {wanted:,} {unit}".strip()
    if value is None:
        return f"not measured ({bound})"
    is_met = value <= wanted if at_most else value >= wanted
    return f"{'met' if is_met else 'MISSED'}: {value:,.4g} {unit} ({bound})"
