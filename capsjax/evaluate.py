"""Losses and accuracy over a whole data set, every image counted exactly once.

    python -m capsjax.evaluate --workdir runs/mnist-seed0

prints what the run's best network makes of the test images, and draws it. Several runs
are an ensemble: the lengths of their class capsules (or their probabilities) are
averaged. ``--data`` names another data set of the same classes and image shape, or the
folder where the images are: of IDX archives, or of pictures with one subfolder for each
class. Its test split is taken, or else all of its images.
"""

import argparse
import contextlib
import dataclasses
import functools
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from capsjax import config as configs
from capsjax.analysis.confusion import commonest_confusions
from capsjax.data import Batch, Dataset, DatasetError, NotFoundError, load
from capsjax.data.augment import crop_middle, scale_to_unit
from capsjax.data.loading import names_images
from capsjax.data.readers.folder_layout import own_splits
from capsjax.data.readers.folder_layout import shortened as listed
from capsjax.models import BaselineCNN, Network, mask_longest
from capsjax.ops import safe_norm
from capsjax.runtime.compile_cache import keep_compiled_programs
from capsjax.runtime.console import answer, command, printable, shortened, warn
from capsjax.runtime.devices import AXIS, my_shares, require_devices
from capsjax.runtime.paths import expanded
from capsjax.storage.checkpoints import CheckpointError
from capsjax.storage.provenance import provenance
from capsjax.storage.run import Prediction, Run, load_run
from capsjax.storage.workdir import WorkdirError, write_json
from capsjax.training.objective import (
    Metrics,
    found,
    image_metrics,
    measure,
    measure_probability,
)

# A capsule is dead if it was never longer, saturated if it was never shorter.
DEAD, SATURATED = 0.05, 0.95
ROUNDS = (1, 2, 3, 5, 8)
# Couplings that are computed to compare numbers of rounds; but of so many images at
# least.
_MOST_COUPLINGS, _FEWEST_COMPARED = 2**27, 200
_WIDEST_TABLE = 160  # Characters; a wider one is told in words.
_MOST_LISTED = 30  # Classes, each with its line.
_MOST_TOLD = 10  # Classes or confusions, in words.
# Classes whose whole table of confusions is kept, and confusions that are kept of more.
_MOST_KEPT_CLASSES, _MOST_KEPT_CONFUSIONS = 100, 10_000


def make_eval_step(
    model: Network,
    loss: configs.Loss,
    class_weight: Float[np.ndarray, " n"] | None = None,
) -> Callable[..., Metrics]:
    """The sums of the metrics of a batch over all devices, as a per-device function.

    The returned function takes the weights, one device's share of the batch and, for
    each of its images, 1 if it counts and 0 if it only fills the batch up. The loss is
    weighted by class as ``image_metrics`` does it.
    """

    def eval_step(params: Any, share: tuple[Batch, Float[Array, " batch"]]) -> Metrics:
        batch, counts = share
        image, source = _middle(batch, model)
        each = image_metrics(
            *(model, params, image, batch.label),
            loss=loss,
            source=source,
            class_weight=class_weight,
        )
        return jax.lax.psum(
            jax.tree.map(lambda values: jnp.sum(values * counts), each), AXIS
        )

    return eval_step


def evaluate(
    eval_step: Callable[..., Metrics],
    params: Any,
    dataset: Dataset,
    *,
    batch_size: int,
    advance: Callable[[int], None] = lambda images: None,
) -> Metrics:
    """Means of the metrics over all images of a data set.

    Args:
        eval_step: What ``make_eval_step`` made, mapped over the devices.
        params: The network's weights.
        dataset: The images.
        batch_size: Images at once over all devices; rounded up to a whole share each.
            The last batch is filled up with images that do not count.
        advance: Told how many images are done, after each batch.
    """
    devices = jax.device_count()
    batch_size = -(-min(batch_size, len(dataset)) // devices) * devices
    sums: list[Metrics] = []

    def read_last() -> None:
        sums[-1] = jax.tree.map(np.asarray, sums[-1])
        advance(min(len(sums) * batch_size, len(dataset)))

    for start in range(0, len(dataset), batch_size):
        indices = np.arange(start, start + batch_size)
        counts = (indices < len(dataset)).astype(np.float32)
        mine = my_shares(np.minimum(indices, len(dataset) - 1))
        # Gathered while the devices are at the batch before.
        share = (dataset.batch(mine), my_shares(counts))
        if sums:
            read_last()
        sums.append(eval_step(params, share))
    read_last()
    return _means(sums, len(dataset))


def _middle(batch: Batch, model: Network) -> tuple[Array, Array | None]:
    """What the network sees of images, and what is in them, with pixels from 0 to 1."""
    source = batch.source
    if source is not None:
        source = scale_to_unit(crop_middle(source, model.image_shape))
    return scale_to_unit(crop_middle(batch.image, model.image_shape)), source


def _means(sums: Sequence[Metrics], num_images: int) -> Metrics:
    # Summed in float64: each image weighs the same, however many there are.
    return jax.tree.map(
        lambda *parts: float(np.sum(parts, dtype=np.float64) / num_images), *sums
    )


# ---- what a run's network makes of the test images


class Lengths(NamedTuple):
    """The extremes of every capsule's length over a set of images.

    Attributes:
        longest: The longest that each capsule was.
        shortest: The shortest.
    """

    longest: Float[np.ndarray, " capsules"]
    shortest: Float[np.ndarray, " capsules"]

    @property
    def num_dead(self) -> int:
        """Capsules that stand for nothing: never longer than ``DEAD``."""
        return int((self.longest <= DEAD).sum())

    @property
    def num_saturated(self) -> int:
        """Capsules that tell nothing apart: never shorter than ``SATURATED``."""
        return int((self.shortest >= SATURATED).sum())


def primary_lengths(run: Run, dataset: Dataset) -> Lengths:
    """The extremes of the primary capsules' lengths over a data set."""
    model: Any = run.model

    @jax.jit
    def extremes(params: Any, batch: Batch) -> tuple[Array, Array]:
        image, _ = _middle(batch, model)
        capsules = model.apply(params, image, method=model.primary)
        length = safe_norm(capsules)
        return length.max(0), length.min(0)

    longest, shortest = [], []
    for _, batch in _batches(run, dataset):
        high, low = extremes(run.params, batch)
        longest.append(np.ravel(high))
        shortest.append(np.ravel(low))
    return Lengths(np.max(longest, axis=0), np.min(shortest, axis=0))


def accuracy_by_rounds(
    run: Run, dataset: Dataset, rounds: Sequence[int]
) -> dict[int, float]:
    """Accuracy if the same weights route in so many rounds each."""
    model: Any = run.model

    @jax.jit
    def primary(params: Any, batch: Batch) -> Array:
        image, _ = _middle(batch, model)
        return model.apply(params, image, method=model.primary)

    def counted(number: int) -> Callable[..., Array]:
        routing = dataclasses.replace(model.routing, num_iterations=number)
        one = model.clone(routing=routing)

        # Each on its own: together they would hold so many forms of the weights.
        @jax.jit
        def num_right(params: Any, primary: Array, label: Array) -> Array:
            routed = one.apply(params, primary, method=one.route)
            return found(routed.activation, label)[0].sum()

        return num_right

    num_right = [counted(number) for number in rounds]
    right = np.zeros(len(rounds))
    for _, batch in _batches(run, dataset):
        capsules = primary(run.params, batch)
        right += [float(each(run.params, capsules, batch.label)) for each in num_right]
    return dict(zip(rounds, (right / len(dataset)).tolist(), strict=True))


class Scores(NamedTuple):
    """How well each class is told from the others; NaN where that has no meaning.

    Attributes:
        num_images: How many images show the class.
        precision: Which share of the images that were taken for it show it.
        recall: Which share of the images that show it were taken for it.
        f1: The harmonic mean of both.
    """

    num_images: Int[np.ndarray, " classes"]
    precision: Float[np.ndarray, " classes"]
    recall: Float[np.ndarray, " classes"]
    f1: Float[np.ndarray, " classes"]

    @property
    def balanced_accuracy(self) -> float:
        """The mean recall of the classes that are shown."""
        return float(self.recall[self.num_images > 0].mean())

    @property
    def is_uneven(self) -> bool:
        """Whether the classes differ in size by more than a tenth."""
        return bool(self.num_images.max() > 1.1 * self.num_images.min())


def class_scores(confusion: Int[np.ndarray, "n n"]) -> Scores:
    """Precision, recall and F1 of each class, from what was taken for what.

    Args:
        confusion: How often each class (a row) was taken for which (a column).
    """
    right, shown, taken = np.diag(confusion), confusion.sum(1), confusion.sum(0)

    def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)

    return Scores(
        shown, share(right, taken), share(right, shown), share(2 * right, shown + taken)
    )


class Evaluation(NamedTuple):
    """What a network, or several together, make of a data set.

    Attributes:
        metrics: Means over the images.
        prediction: For every image.
        confusion: How often each class that is shown (a row) was taken for which (a
            column). Of several in one image, those that were missed are set against
            those that were taken for them, both in the order of the classes.
        primary: Lengths of the primary capsules of one network, if it has any.
        classes: Lengths of the class capsules, if there are any.
        by_rounds: Accuracy by the number of rounds of routing, if there is routing.
        num_compared: Of so many of the images.
    """

    metrics: Metrics
    prediction: Prediction
    confusion: Any
    primary: Lengths | None = None
    classes: Lengths | None = None
    by_rounds: dict[int, float] | None = None
    num_compared: int = 0


def evaluate_run(
    run: Run, dataset: Dataset, *, looks_inside: bool = True
) -> Evaluation:
    """Everything that is told of a run, but the figures.

    Args:
        run: Whose network.
        dataset: The images.
        looks_inside: Whether to tell of capsules and routing, if there are any.
    """
    summed, sums, parts = _summed_metrics(run), [], []
    for _, batch in _batches(run, dataset):
        part = run.predict(batch.image)
        sums.append(jax.tree.map(np.asarray, summed(run.params, batch, part)))
        # Poses of many classes and images would take more memory than the images.
        parts.append(part._replace(pose=None))
    prediction: Prediction = jax.tree.map(lambda *part: np.concatenate(part), *parts)
    evaluation = Evaluation(
        _means(sums, len(dataset)),
        prediction,
        _confusion(dataset.label, prediction.length),
    )
    if isinstance(run.model, BaselineCNN) or not looks_inside:
        return evaluation
    length = prediction.length
    # Of many classes each number of rounds takes minutes to compile and to compare.
    compared_rounds = ROUNDS if length.shape[1] <= _MOST_KEPT_CLASSES else ROUNDS[:2]
    rounds = sorted({*compared_rounds, run.config.model.num_iterations})
    primary = primary_lengths(run, dataset)
    num_couplings = primary.longest.size * length.shape[1]
    compared = _some(dataset, max(_FEWEST_COMPARED, _MOST_COUPLINGS // num_couplings))
    return evaluation._replace(
        primary=primary,
        classes=Lengths(length.max(0), length.min(0)),
        by_rounds=accuracy_by_rounds(run, compared, rounds),
        num_compared=len(compared),
    )


def _some(dataset: Dataset, number: int) -> Dataset:
    """So many images at most, of all parts of the set: it may be sorted by class."""
    if len(dataset) <= number:
        return dataset
    index = np.random.default_rng(0).choice(len(dataset), number, replace=False)
    return dataset.subset(np.sort(index))


def evaluate_ensemble(
    runs: Sequence[Run], dataset: Dataset, members: Sequence[Evaluation]
) -> Evaluation:
    """What several networks make of a data set together.

    The lengths of their class capsules, or their probabilities, are averaged. Nothing
    is drawn; margins are those of the first run.

    Args:
        runs: Of one kind of network.
        dataset: The images.
        members: What each run makes of them.
    """
    length = np.mean([one.prediction.length for one in members], axis=0)
    prediction = Prediction(length.argmax(-1), length, None)
    summed, sums = _summed_metrics(runs[0]), []
    for part, batch in _batches(runs[0], dataset):
        seen = jax.tree.map(lambda whole, part=part: whole[part], prediction)
        sums.append(jax.tree.map(np.asarray, summed(runs[0].params, batch, seen)))
    return Evaluation(
        _means(sums, len(dataset)), prediction, _confusion(dataset.label, length)
    )


def _summed_metrics(run: Run) -> Callable[[Any, Batch, Prediction], Metrics]:
    """Makes the function that sums up the metrics of a batch, given its predictions."""

    @jax.jit
    def summed(params: Any, batch: Batch, prediction: Prediction) -> Metrics:
        image, source = _middle(batch, run.model)
        length: Any = prediction.length
        if isinstance(run.model, BaselineCNN):
            # Of a probability that was rounded to zero the logarithm is not finite.
            log_probability = jnp.log(jnp.maximum(length, np.finfo(np.float32).tiny))
            each = measure_probability(log_probability, batch.label)
        else:
            each = measure(
                *(run.model, params, prediction.pose, length, image, batch.label),
                loss=run.config.loss,
                source=source,
            )
        return jax.tree.map(jnp.sum, each)

    return summed


def _batches(run: Run, dataset: Dataset) -> Iterator[tuple[slice, Batch]]:
    """A data set's images, as many at a time as the run evaluates at once."""
    step = run.config.eval_batch_size
    for start in range(0, len(dataset), step):
        part = slice(start, min(start + step, len(dataset)))
        yield part, dataset.batch(np.arange(part.start, part.stop))


def _confusion(label: np.ndarray, length: Float[np.ndarray, "m n"]) -> np.ndarray:
    num_classes = length.shape[1]
    if label.ndim == 1:
        pairs = label.astype(np.int64) * num_classes + length.argmax(-1)
        confusion = np.bincount(pairs, minlength=num_classes**2)
        return confusion.reshape(num_classes, num_classes)
    shown = label
    taken = np.asarray(mask_longest(jnp.asarray(length), jnp.asarray(shown.sum(1)))) > 0
    confusion = np.diag((shown & taken).sum(0))
    # By image and then by class; of each image as many were missed as taken for them.
    missed, instead = np.nonzero(shown & ~taken)[1], np.nonzero(taken & ~shown)[1]
    np.add.at(confusion, (missed, instead), 1)
    return confusion


def _summary(metrics: Metrics, num_images: int) -> str:
    wrong = round(num_images * (1 - metrics.accuracy))
    several = ""
    if metrics.label_accuracy is not None:
        several = f"; {metrics.label_accuracy:.2%} of the classes found"
    return (
        f"loss {metrics.loss:.6f}, accuracy {metrics.accuracy:.2%} "
        f"({wrong} wrong){several}"
    )


def _told(dataset: Dataset, evaluation: Evaluation) -> Iterator[str]:
    """The lines that are printed of an evaluation: few, however many classes."""
    yield _summary(evaluation.metrics, len(dataset))
    scores = class_scores(evaluation.confusion)
    if scores.is_uneven:
        yield (
            f"balanced accuracy {scores.balanced_accuracy:.2%}: the mean of the "
            "classes' recall, which differ in size"
        )
    yield ""
    yield from _told_of_classes(dataset.class_names, evaluation.confusion, scores)
    yield ""
    for what, lengths in (
        ("primary", evaluation.primary),
        ("class", evaluation.classes),
    ):
        if lengths is not None:
            yield (
                f"{len(lengths.longest)} {what} capsules: {lengths.num_dead} dead "
                f"(never longer than {DEAD}), {lengths.num_saturated} saturated (never "
                f"shorter than {SATURATED})"
            )
    if evaluation.by_rounds is not None:
        each = (f"{n}: {share:.2%}" for n, share in evaluation.by_rounds.items())
        of = "weights as they are"
        if evaluation.num_compared < len(dataset):
            of += f", {evaluation.num_compared} of the images"
        yield f"accuracy by rounds of routing, {of}: {', '.join(each)}"


def _told_of_classes(
    class_names: Sequence[str], confusion: Int[np.ndarray, "n n"], scores: Scores
) -> Iterator[str]:
    """Each class's scores and what it was taken for; of many, what is worst."""
    names = [shortened(name, 20) for name in class_names]
    wide = max(5, *map(len, names))
    head = f"{'label':{wide}} images precision  recall      F1"
    is_table = len(head) + 1 + (wide + 1) * len(names) <= _WIDEST_TABLE
    shown: Any = range(len(names))
    if len(names) > _MOST_LISTED:
        shown = np.argsort(scores.recall, kind="stable")[:_MOST_TOLD]  # NaN is last.
        yield f"the {len(shown)} of {len(names)} classes that were found least:"
    yield head + "  taken for" * is_table
    if is_table:
        yield " " * (len(head) + 1) + "".join(f" {name:>{wide}}" for name in names)
    shares = [[_share(value) for value in values.tolist()] for values in scores[1:]]
    for k in shown:
        precision, recall, f1 = (column[k] for column in shares)
        row = f"{names[k]:{wide}} {scores.num_images[k]:6} "
        row += f"{precision:>9} {recall:>7} {f1:>7}"
        if is_table:
            cells = "".join(f" {count or '.':>{wide}}" for count in confusion[k])
            row = f"{row} {cells}"
        yield row
    commonest = commonest_confusions(confusion, _MOST_TOLD)
    if not is_table and commonest:
        yield ""
        yield "taken for others most often:"
        for label, taken, count in commonest:
            yield f"{count:6} x {names[label]} as {names[taken]}"


def _share(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.2%}"


def _about(
    runs: Sequence[Run], dataset: Dataset, evaluation: Evaluation
) -> dict[str, Any]:
    by_rounds, confusion = evaluation.by_rounds or {}, evaluation.confusion
    is_small = len(confusion) <= _MOST_KEPT_CLASSES
    names = dataset.class_names
    scores = class_scores(confusion)
    by_class = {
        name: [None if np.isnan(value) else float(value) for value in values]
        for name, values in scores._asdict().items()
    }
    return {
        "data": {"name": dataset.name, **dataset.identity()},
        "runs": [{"path": str(run.workdir.path), "step": run.step} for run in runs],
        **evaluation.metrics.known(),
        "balanced_accuracy": scores.balanced_accuracy,
        "classes": {
            class_name: {
                "num_images": int(scores.num_images[k]),
                **{name: by_class[name][k] for name in ("precision", "recall", "f1")},
            }
            for k, class_name in enumerate(dataset.class_names)
        },
        "accuracy_by_rounds": {str(n): share for n, share in by_rounds.items()},
        "confusion": confusion.tolist() if is_small else None,
        "commonest_confusions": [
            {"label": names[label], "taken_for": names[taken], "images": count}
            for label, taken, count in commonest_confusions(
                confusion, _MOST_TOLD if is_small else _MOST_KEPT_CONFUSIONS
            )
        ],
        **provenance(),
    }


def _load_test_set(runs: Sequence[Run], name: str | None) -> Dataset:
    """The first run's test images, or those of another data set, if they fit all.

    Raises:
        DatasetError: If they can't be had or don't fit.
        WorkdirError: If the runs don't go together.
    """
    first = runs[0]
    data = first.config.data
    load_split = functools.partial(
        load,
        image_size=data.image_size,
        max_bytes=int(first.config.max_gigabytes * 1e9),
        preparation=first.preparation,
        skip_bad_files=data.skip_bad_files,
    )
    if name is not None and names_images(name):
        load_split = functools.partial(load_split, image_size=0)
        dataset = _load_pictures(first, name, load_split)
    else:
        folder = data.path if name in (None, data.name) else ""
        try:
            rule = first.workdir.split_rule()
            named = name or data.name
            dataset = load_split(named, "test", path=folder, split_rule=rule).fixed()
        except NotFoundError as error:
            raise NotFoundError(
                f"{error}. If the images are elsewhere: --data FOLDER"
            ) from error
    dataset = _with_classes_of(first, dataset)
    for run in runs:
        path = run.workdir.path
        if run.config.model.name != first.config.model.name:
            raise WorkdirError(
                f"{first.workdir.path} and {path} are no ensemble: the former is of a "
                f"{first.config.model.name}, the latter of a {run.config.model.name}."
            )
        if run.image_shape != dataset.image_shape:
            raise DatasetError(
                f"{dataset.name} does not fit {path}: its images are "
                f"{dataset.image_shape}, and {run.image_shape} there."
            )
        scales = {one.preparation.scale for one in (first, run)} - {"own", "type"}
        if len(scales) > 1:
            raise WorkdirError(
                f"{first.workdir.path} and {path} are no ensemble: what is black and "
                f"white in grey of more than 8 bits differs, {scales}."
            )
        if run.class_names != dataset.class_names:
            raise WorkdirError(
                f"{first.workdir.path} and {path} are no ensemble: the classes that "
                "were learnt differ."
            )
        if isinstance(run.model, BaselineCNN) and dataset.is_multi_label:
            raise DatasetError(
                f"{dataset.name} does not fit {path}: it shows several classes in an "
                "image, of which the baseline names one."
            )
    return dataset


def _load_pictures(run: Run, folder: str, load_split: Callable[..., Any]) -> Dataset:
    """The test images of a folder of pictures; all of them where it has no such split.

    If they are the run's own images, which may have moved, they are divided as before.
    """
    load_split = functools.partial(load_split, "image_folder", path=folder)
    with contextlib.suppress(DatasetError):
        test_set = load_split("test", split_rule=run.workdir.split_rule())
        if run.workdir.is_of(test_set, "test"):
            return test_set
    if "test" in own_splits(expanded(folder)):
        return load_split("test")
    note = (
        f"{folder} has no folder for the test: all of its images are evaluated, and if "
        "the network was trained on some of them, those too"
    )
    dataset = load_split("all")
    return dataclasses.replace(dataset, notes=(note, *dataset.notes))


def _with_classes_of(run: Run, dataset: Dataset) -> Dataset:
    """The data set with labels that count as the run's classes do, by their names.

    Raises:
        DatasetError: If the run has not learnt one of its classes.
    """
    learnt = {printable(name): index for index, name in enumerate(run.class_names)}
    names = [printable(name) for name in dataset.class_names]
    if unknown := [name for name in names if name not in learnt]:
        raise DatasetError(
            f"{dataset.name} does not fit {run.workdir.path}: its classes are not "
            f"those that were learnt there, which have no {listed(unknown)}."
        )
    index = np.array([learnt[name] for name in names], np.int32)
    label = index[dataset.label] if not dataset.is_multi_label else None
    if label is None:
        label = np.zeros((len(dataset), len(run.class_names)), np.bool_)
        label[:, index] = dataset.label
    return dataclasses.replace(dataset, label=label, class_names=run.class_names)


@command("capsjax.evaluate", WorkdirError, CheckpointError, ValueError)
def main(argv: Sequence[str] | None = None) -> int:
    """The command line: evaluates, draws, and returns the exit code."""
    parser = argparse.ArgumentParser(
        "capsjax.evaluate",
        description="What a run's best network makes of the test images.",
    )
    parser.add_argument(
        "--workdir",
        nargs="+",
        required=True,
        metavar="DIR",
        help="the folder of a trained run; several are an ensemble",
    )
    parser.add_argument(
        "--data",
        metavar="NAME",
        help="another data set of the same form and classes, or a folder of one",
    )
    parser.add_argument(
        "--no-figures", action="store_true", help="only print, write nothing"
    )
    arguments = parser.parse_args(argv)
    keep_compiled_programs()
    require_devices()
    runs = [load_run(path) for path in arguments.workdir]
    dataset = _load_test_set(runs, arguments.data)
    answer(f"{len(dataset)} test images of {dataset.name}")
    for note in dataset.notes:
        warn(note)
    for run in () if arguments.data else runs:
        if told := run.workdir.other_images({"test": dataset}):
            warn(f"{run.workdir.path} {told}")
    members, lines = [], []
    for run in runs:
        is_alone = len(runs) == 1
        members.append(evaluate_run(run, dataset, looks_inside=is_alone))
        what = f"{run.workdir.path}, step {run.step}, learnt {run.config.data.name}"
        summary = _summary(members[-1].metrics, len(dataset))
        lines.append(what if is_alone else f"{what}: {summary}")
    evaluation = members[0]
    if len(runs) > 1:
        lines.append(f"all {len(runs)} together:")
        evaluation = evaluate_ensemble(runs, dataset, members)
    written: list[str] = []
    try:
        answer(*lines, *_told(dataset, evaluation))
    finally:  # What has been computed is kept, also if nobody reads it.
        if not arguments.no_figures:
            written = _keep(runs, dataset, evaluation, arguments.data, argv)
    answer(*written)
    return 0


def _keep(
    runs: Sequence[Run],
    dataset: Dataset,
    evaluation: Evaluation,
    data: str | None,
    argv: Sequence[str] | None,
) -> list[str]:
    """Writes the numbers and the figures; returns lines that say where."""
    folder = runs[0].workdir.figures
    if len(runs) > 1:
        folder /= "ensemble"
    if data:
        folder /= re.sub(r"[^\w.-]+", "-", data).strip(".-")
    folder.mkdir(parents=True, exist_ok=True)
    words = ["python", "-m", "capsjax.evaluate", *(argv or sys.argv[1:])]
    about = _about(runs, dataset, evaluation) | {"command": shlex.join(words)}
    write_json(folder / "evaluation.json", about)
    lines = [f"{folder / 'evaluation.json'} has these numbers, and what made them"]
    if len(runs) == 1:
        from capsjax.analysis import figures

        written = figures.draw(
            *(runs[0], dataset, evaluation.prediction, evaluation.confusion),
            *(evaluation.by_rounds, folder),
        )
        lines.append(f"{len(written)} figures in {folder}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
