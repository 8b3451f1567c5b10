"""Draws the figures of one run; picks the images to show."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from capsjax.analysis import plots
from capsjax.analysis.evaluation import Evaluation
from capsjax.analysis.inspection import couplings, most_routed, tweaked
from capsjax.data import Dataset
from capsjax.data.crop import crop_middle
from capsjax.models.network import can_draw, has_stages, routing_of
from capsjax.storage.run import Run
from capsjax.training.objective import verdict

_MOST_SAMPLES = 30
_MOST_REDRAWN = 10
_MOST_MISTAKES = 20
_MOST_EXAMPLES = 10
_NUM_OVERLAPS = 4


def draw(
    run: Run,
    dataset: Dataset,
    evaluation: Evaluation,
    folder: pathlib.Path,
) -> list[pathlib.Path]:
    """Draws all figures that apply to a run.

    Args:
        run: The run, with its network.
        dataset: The test images.
        evaluation: The run's results on them.
        folder: The folder for the figures; its old figures are deleted.

    Returns:
        The files written.
    """
    names = dataset.class_names
    predicted, length, _ = evaluation.prediction
    scores, by_rounds = evaluation.scores, evaluation.by_rounds
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):  # Perhaps from another network and other classes.
        old.unlink()
    draws = run.config.loss.reconstruction_weight > 0 and can_draw(run.model)
    written = []

    def save(name: str, figure: Any) -> None:
        written.append(folder / f"{name}.png")
        plots.save(figure, written[-1])

    def named(labels: Any) -> list[str]:
        return [names[k] for k in labels]

    def seen(index: Any) -> Any:
        """Returns some images as the network sees them; all would not fit in memory."""
        middle = crop_middle(dataset.image[index], run.model.image_shape)
        return middle / np.float32(255)

    # Draw the data, the confusions and the training.
    samples = _some(dataset, _MOST_SAMPLES)
    shown = dataset.label[samples]
    if dataset.is_multi_label:
        titles = [" ".join(named(np.flatnonzero(row))) or "none" for row in shown]
    else:
        titles = named(shown)
    save("samples", plots.samples(seen(samples), titles))
    if evaluation.confusion is not None:
        save("confusion", plots.confusion(evaluation.confusion, names))
    if scores.balanced is not None and scores.average_precision is not None:
        by_name = {
            "average precision": scores.average_precision,
            "balanced accuracy": scores.balanced,
            "recall": scores.recall,
            "precision": scores.precision,
        }
        save("labels", plots.label_scores(by_name, scores.num_images, names))
    if run.workdir.metrics.exists():
        curves = _curves(run.workdir.read_metrics())
        save("training", plots.training_curves(*curves))
    # Draw the routing.
    measures: list[dict[str, float]] = []
    num_routed = 0 if by_rounds is None else most_routed(run)
    if by_rounds is not None and num_routed:
        routing: Any = routing_of(run.model)
        assert evaluation.changed is not None
        usual = routing.num_rounds
        routed = couplings(run, seen(_some(dataset, num_routed)), max(by_rounds))
        changes = np.abs(np.diff(routed.coupling, axis=0)).mean(axis=(1, 2, 3))
        figure = plots.rounds(
            *(by_rounds, evaluation.changed or {}, routed.logit_change, changes),
            usual=usual,
        )
        save("rounds", figure)
        entropy = routed.entropy[:usual].reshape(usual, -1)
        choices = len(names) + (not routing.couplings_sum_to_one)
        save("entropy", plots.coupling_entropy(entropy, num_classes=choices))
        measures = routed.measures
    if (diagnosis := evaluation.diagnosis) is not None:
        save("measures", plots.measures(diagnosis.histogram, diagnosis.sizes, measures))
    if (calibration := evaluation.calibration) is not None:
        curves = {
            what: (one.confidence.mean, one.right.mean, one.right.weight)
            for what, one in (
                ("as it is", calibration.as_is),
                (f"temperature {calibration.temperature:.3g}", calibration.fitted),
            )
        }
        save("reliability", plots.reliability(curves))
    if dataset.is_multi_label:
        save("mistakes", _label_mistakes(dataset, length, seen))
        if draws and dataset.source is not None and dataset.source.shape[1] == 2:
            save("overlaps", _overlaps(run, dataset, length, seen))
        return written

    # Draw the mistakes; predict all poses that the rest needs in one call.
    all_wrong = np.flatnonzero(predicted != dataset.label)
    most_confident = np.argsort(-length[all_wrong].max(-1), kind="stable")
    wrong = all_wrong[most_confident][:_MOST_MISTAKES]
    two = np.argsort(-length[wrong], axis=-1, kind="stable")[:, :2]
    # The first image of each class that was predicted right.
    right = np.flatnonzero(predicted == dataset.label)
    classes, firsts = np.unique(dataset.label[right], return_index=True)
    examples, classes = right[firsts][:_MOST_EXAMPLES], classes[:_MOST_EXAMPLES]
    first = _some(dataset, _MOST_REDRAWN)
    poses = _poses(run, dataset, np.concatenate([wrong, first, examples]))
    if poses is None:
        pose_of_wrong = pose_of_first = pose_of_examples = None
    else:
        ends = (len(wrong), len(wrong) + len(first))
        pose_of_wrong, pose_of_first, pose_of_examples = np.split(poses, ends)
    drawn = None
    if draws and pose_of_wrong is not None:
        drawn = np.stack([run.draw(pose_of_wrong, two[:, k]) for k in (0, 1)], axis=1)
    figure = plots.mistakes(
        seen(wrong),
        drawn,
        [named(pair) for pair in two],
        np.take_along_axis(length[wrong], two, axis=-1),
        named(dataset.label[wrong]),
        title=f"{len(wrong)} of {len(all_wrong)} mistakes, most confident first",
    )
    save("mistakes", figure)
    if pose_of_first is None or pose_of_examples is None:
        return written

    # Draw reconstructions.
    if draws:
        redrawn = run.draw(pose_of_first, predicted[first])
        titles = named(dataset.label[first]), named(predicted[first])
        save("reconstructions", plots.reconstructions(seen(first), redrawn, *titles))

    for label, pose in zip(classes.tolist(), pose_of_examples, strict=True):
        for limit in (0.5, 0.25) if draws else ():
            limits = {"low": -limit, "high": limit}
            rows = tweaked(run, pose[label], label, **limits)
            figure = plots.tweaks(rows, **limits, title=f"{names[label]}, tweaked")
            save(f"tweak-{label}-{limit}", figure)

    # Draw the couplings over the images.
    if len(routed_examples := examples[:num_routed]):
        shown = seen(routed_examples)
        maps, extent = _by_position(run, couplings(run, shown).share)
        titles = named(dataset.label[routed_examples])
        save("couplings", plots.coupling_maps(shown, maps, titles, extent=extent))
    return written


def _some(dataset: Dataset, number: int) -> Int[np.ndarray, " n"]:
    """Returns the first indices; evenly spaced ones if images are sorted by class."""
    number = min(number, len(dataset))
    if dataset.is_multi_label or (np.diff(dataset.label) < 0).any():
        return np.arange(number)
    return np.arange(number) * len(dataset) // number


def _poses(
    run: Run, dataset: Dataset, index: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "n classes d"] | None:
    """Returns the poses of some images; None from a network that has none."""
    if not len(index):
        return None
    return run.predict(dataset.image[index]).pose


def _label_mistakes(
    dataset: Dataset, length: Float[np.ndarray, "n classes"], seen: Any
) -> Any:
    """Draws the images of several classes with the most wrong labels."""
    label = dataset.label
    wrong, named = most_wrong(label, length, is_counted=dataset.num_shown is not None)
    shown = wrong[:_MOST_MISTAKES]

    def listed(rows: Any) -> list[list[tuple[str, float]]]:
        return [
            [(dataset.class_names[k], float(length[n, k])) for k in np.flatnonzero(row)]
            for n, row in zip(shown, rows, strict=True)
        ]

    title = f"{len(shown)} of {len(wrong)} mistakes, most wrong first"
    return plots.label_mistakes(
        seen(shown), listed(label[shown]), listed(named[shown]), title=title
    )


def most_wrong(
    label: Bool[np.ndarray, "n classes"],
    length: Float[np.ndarray, "n classes"],
    *,
    is_counted: bool,
) -> tuple[Int[np.ndarray, " wrong"], Bool[np.ndarray, "n classes"]]:
    """Finds the misjudged images of several classes.

    Args:
        label: True for each class of an image.
        length: Length or probability of every class.
        is_counted: True if all images show the same number of classes.

    Returns:
        The indices of the images with a wrong verdict, first those that miss or add
        the most classes, by the largest errors; and the verdict for every image.
    """
    judged = jnp.asarray(length), jnp.asarray(label)
    named = np.asarray(verdict(*judged, kind="length", is_counted=is_counted)) > 0
    is_wrong = named != label
    error = np.where(is_wrong, np.abs(length - label), 0).sum(axis=1)
    order = np.lexsort((-error, -is_wrong.sum(axis=1)))
    return order[: is_wrong.any(axis=1).sum()], named


def _overlaps(
    run: Run, dataset: Dataset, length: Float[np.ndarray, "n classes"], seen: Any
) -> Any:
    """Draws the paper's figure 5: right answers, wrong ones, and absent classes."""
    label = dataset.label
    columns = overlap_columns(label, length)
    index = np.array([n for n, _, _ in columns], int)
    pair = np.array([pair for _, _, pair in columns], int).reshape(-1, 2)
    pose = _poses(run, dataset, index)
    assert pose is not None
    drawn = [run.draw(pose, pair[:, k]) for k in (0, 1)]

    def named(classes: Any) -> str:
        return ", ".join(run.class_names[k] for k in classes)

    titles = [
        (f"label {named(np.flatnonzero(label[n]))}", f"{kind}: {named(classes)}")
        for n, kind, classes in columns
    ]
    return plots.overlaps(seen(index), np.stack(drawn, axis=1), titles)


def overlap_columns(
    label: Bool[np.ndarray, "n classes"], length: Float[np.ndarray, "n classes"]
) -> list[tuple[int, str, tuple[int, int]]]:
    """Picks images of two classes to show.

    First right ones; then wrong ones, drawn as predicted and as labelled; then right
    ones again, drawn as a class that is there and one that is not.

    Returns:
        Index of the image, word for the reason, and the two classes to draw.
    """
    shown = np.nonzero(label)[1].reshape(-1, 2)
    predicted = np.sort(np.argsort(-length, kind="stable")[:, :2])
    is_right = (predicted == shown).all(-1)
    right, wrong = (
        np.flatnonzero(is_right == value)[:_NUM_OVERLAPS] for value in (True, False)
    )
    columns: list[Any] = [(n, "right", predicted[n]) for n in right]
    for n in wrong:
        columns += [(n, "wrong", predicted[n]), (n, "label", shown[n])]
    for k, n in enumerate(right[: _NUM_OVERLAPS // 2]):
        absent = np.flatnonzero(~label[n])
        if len(absent):
            columns.append((n, "requested", (shown[n, 0], absent[k % len(absent)])))
    return [(int(n), kind, (int(a), int(b))) for n, kind, (a, b) in columns]


def _curves(lines: list[dict[str, Any]]) -> list[np.ndarray]:
    """Returns epoch, loss and accuracy from the lines of training and validation."""
    last = {line["epoch"]: line["step"] for line in lines}
    per_epoch = max(step / epoch for epoch, step in last.items())
    return [
        np.array(
            [
                (line["step"] / per_epoch, line["loss"], line["accuracy"])
                for line in lines
                if line["kind"] == kind
            ]
        ).reshape(-1, 3)
        for kind in ("train", "validation")
    ]


def _by_position(
    run: Run, share: Float[Array, "round n i"]
) -> tuple[Float[np.ndarray, "round n H W"], tuple[float, float, float, float]]:
    """Sums over the types of capsules; returns the maps and their place in pixels."""
    assert has_stages(run.model)
    window, step = run.model.primary_window
    image = jnp.zeros(run.model.image_shape)
    primary = functools.partial(run.model.apply, method="primary")
    capsules: Any = jax.eval_shape(primary, run.params, image)
    height, width, _, _ = capsules.shape
    rounds, images, _ = share.shape
    maps = np.asarray(share).reshape(rounds, images, height, width, -1).sum(-1)
    start = (window - 1) / 2
    left, right = start - step / 2, start + step * (width - 0.5)
    bottom = start + step * (height - 0.5)
    return np.clip(maps, 0, None), (left, right, bottom, left)
