"""Losses and accuracy over a whole data set, every image counted exactly once.

    python -m capsjax.evaluate --workdir runs/mnist-seed0

prints what the run's best network makes of the test images, and draws it.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from capsjax import config as configs
from capsjax.checkpoint import CheckpointError
from capsjax.compilation import keep_compiled_programs
from capsjax.data import Batch, Dataset, DatasetError, load
from capsjax.data.augment import scale_to_unit
from capsjax.losses import margin_loss, reconstruction_loss
from capsjax.models import CapsNet, mask_longest
from capsjax.ops import safe_norm
from capsjax.parallel import AXIS, my_shares
from capsjax.run import Prediction, Run, load_run
from capsjax.workdir import WorkdirError

# A capsule is dead if it was never longer, saturated if it was never shorter.
DEAD, SATURATED = 0.05, 0.95


class Metrics(NamedTuple):
    """What is measured of images: means over them, or sums.

    Attributes:
        loss: The weighted sum of the two that is minimised.
        margin_loss: Margin loss, not weighted.
        reconstruction_loss: Squared error of the reconstruction, not weighted; 0 if its
            weight is 0, as nothing is drawn then.
        accuracy: The share of images whose longest capsule is their label's.
    """

    loss: Float[Array | float, "*batch"]
    margin_loss: Float[Array | float, "*batch"]
    reconstruction_loss: Float[Array | float, "*batch"]
    accuracy: Float[Array | float, "*batch"]


def image_metrics(
    model: CapsNet,
    params: Any,
    image: Float[Array, "batch h w c"],
    label: Array,
    *,
    loss: configs.Loss,
    mask: Float[Array, "batch n"] | None,
) -> Metrics:
    """Losses and correctness of each image.

    Args:
        model: The network.
        params: Its weights.
        image: Pixels from 0 to 1.
        label: The class of each image.
        loss: Weights and margins.
        mask: The capsules to reconstruct from: the label's in training; None for the
            longest one, as in inference.
    """
    routed: Any = model.apply(params, image, method=model.encode)
    drawn = None
    if loss.reconstruction_weight:
        mask = mask_longest(routed.activation) if mask is None else mask
        drawn = model.apply(params, routed.pose, mask, method=model.decode)
    return measure(routed.activation, label, image, drawn, loss=loss)


def measure(
    length: Float[Array, "batch n"],
    label: Array,
    image: Float[Array, "batch h w c"],
    drawn: Any,
    *,
    loss: configs.Loss,
) -> Metrics:
    """Losses and correctness of each image, given what the network made of it.

    Args:
        length: Of the class capsules.
        label: The class of each image.
        image: Pixels from 0 to 1.
        drawn: The image redrawn; None where the loss gives it no weight.
        loss: Weights and margins.
    """
    margin = margin_loss(
        length,
        label,
        present=loss.present,
        absent=loss.absent,
        down_weight=loss.down_weight,
    )
    error = jnp.zeros_like(margin)
    if drawn is not None:
        error = reconstruction_loss(
            drawn, image, reduction=loss.reconstruction_reduction
        )
    return Metrics(
        loss=loss.margin_weight * margin + loss.reconstruction_weight * error,
        margin_loss=margin,
        reconstruction_loss=error,
        accuracy=(jnp.argmax(length, axis=-1) == label).astype(jnp.float32),
    )


def make_eval_step(model: CapsNet, loss: configs.Loss) -> Callable[..., Metrics]:
    """The sums of the metrics of a batch over all devices, as a per-device function.

    The returned function takes the weights, one device's share of the batch and, for
    each of its images, 1 if it counts and 0 if it only fills the batch up.
    """

    def eval_step(params: Any, share: tuple[Batch, Float[Array, " batch"]]) -> Metrics:
        batch, counts = share
        image = scale_to_unit(batch.image)
        each = image_metrics(model, params, image, batch.label, loss=loss, mask=None)
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
    sums = np.zeros(len(Metrics._fields))
    for start in range(0, len(dataset), batch_size):
        indices = np.arange(start, start + batch_size)
        counts = (indices < len(dataset)).astype(np.float32)
        mine = my_shares(np.minimum(indices, len(dataset) - 1))
        share = (dataset.batch(mine), my_shares(counts))
        # Summed in float64: each image weighs the same, however many there are.
        sums += np.asarray(eval_step(params, share), np.float64)
        advance(min(start + batch_size, len(dataset)))
    return Metrics(*(sums / len(dataset)).tolist())


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

    @jax.jit
    def extremes(params: Any, image: Array) -> tuple[Array, Array]:
        capsules: Any = run.model.apply(
            params, scale_to_unit(image), method=run.model.primary
        )
        length = safe_norm(capsules)
        return length.max(0), length.min(0)

    longest, shortest = [], []
    for start in range(0, len(dataset), run.config.eval_batch_size):
        stop = min(start + run.config.eval_batch_size, len(dataset))
        high, low = extremes(run.params, dataset.batch(np.arange(start, stop)).image)
        longest.append(np.ravel(high))
        shortest.append(np.ravel(low))
    return Lengths(np.max(longest, axis=0), np.min(shortest, axis=0))


class Evaluation(NamedTuple):
    """What a run's network makes of a data set.

    Attributes:
        metrics: Means over the images.
        prediction: For every image.
        confusion: How often each class (a row) was taken for which (a column).
        primary: Lengths of the primary capsules.
        classes: Lengths of the class capsules.
    """

    metrics: Metrics
    prediction: Prediction
    confusion: Any
    primary: Lengths
    classes: Lengths


def evaluate_run(run: Run, dataset: Dataset) -> Evaluation:
    """Everything that is told of a run, but the figures."""
    prediction = run.predict(dataset.image)
    sums = np.zeros(len(Metrics._fields))
    step = run.config.eval_batch_size
    for start in range(0, len(dataset), step):
        part = slice(start, start + step)
        drawn = None
        if run.config.loss.reconstruction_weight:
            drawn = run.draw(prediction.pose[part], prediction.label[part])
            drawn = jnp.asarray(drawn)
        each = measure(
            jnp.asarray(prediction.length[part]),
            jnp.asarray(dataset.label[part]),
            scale_to_unit(dataset.image[part]),
            drawn,
            loss=run.config.loss,
        )
        sums += [np.asarray(values).sum(dtype=np.float64) for values in each]
    confusion = np.zeros((dataset.num_classes,) * 2, int)
    np.add.at(confusion, (dataset.label, prediction.label), 1)
    length = prediction.length
    return Evaluation(
        Metrics(*(sums / len(dataset)).tolist()),
        prediction,
        confusion,
        primary_lengths(run, dataset),
        Lengths(length.max(0), length.min(0)),
    )


def _tell(run: Run, dataset: Dataset, evaluation: Evaluation) -> None:
    metrics, confusion = evaluation.metrics, evaluation.confusion
    wrong = len(dataset) - int(np.trace(confusion))
    print(f"{run.workdir.path}, step {run.step}: {len(dataset)} test images")
    print(f"loss {metrics.loss:.6f}, accuracy {metrics.accuracy:.2%} ({wrong} wrong)\n")
    wide = max(5, *(len(name) for name in dataset.class_names))
    head = "".join(f" {name:>{wide}}" for name in dataset.class_names)
    print(f"{'label':{wide}} images accuracy  taken for")
    print(" " * (wide + 16) + head)
    for k, (name, row) in enumerate(zip(dataset.class_names, confusion, strict=True)):
        total = row.sum()
        share = f"{row[k] / total:.2%}" if total else ""
        cells = "".join(f" {count or '.':>{wide}}" for count in row)
        print(f"{name:{wide}} {total:6} {share:>8} {cells}")
    print()
    for kind in ("primary", "classes"):
        lengths: Lengths = getattr(evaluation, kind)
        what = "class" if kind == "classes" else kind
        print(
            f"{len(lengths.longest)} {what} capsules: {lengths.num_dead} dead (never "
            f"longer than {DEAD}), {lengths.num_saturated} saturated (never shorter "
            f"than {SATURATED})"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: evaluates, draws, and returns the exit code."""
    parser = argparse.ArgumentParser(
        "capsjax.evaluate",
        description="What a run's best network makes of the test images.",
    )
    parser.add_argument("--workdir", required=True, help="the folder of a trained run")
    parser.add_argument("--no-figures", action="store_true", help="only print")
    arguments = parser.parse_args(argv)
    try:
        keep_compiled_programs()
        run = load_run(arguments.workdir)
        dataset = load(run.config.data.name, "test")
        if (dataset.image_shape, dataset.class_names) != (
            run.image_shape,
            run.class_names,
        ):
            raise DatasetError(
                f"{dataset.name} is not what {run.workdir.path} was trained on: its "
                "images or classes are others now."
            )
        evaluation = evaluate_run(run, dataset)
        _tell(run, dataset, evaluation)
        if not arguments.no_figures:
            from capsjax import figures

            written = figures.draw(
                run, dataset, evaluation.prediction, evaluation.confusion
            )
            print(f"{len(written)} figures in {run.workdir.figures}")
    except (WorkdirError, CheckpointError, OSError, ValueError) as error:
        print(f"capsjax.evaluate: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
