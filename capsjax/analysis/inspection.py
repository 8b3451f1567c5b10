"""Looks inside a trained network: capsules' lengths, couplings, rounds, tweaks."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from capsjax.data import Batch, Dataset
from capsjax.models.network import Staged, has_stages
from capsjax.ops import safe_norm, tweak_pose
from capsjax.storage.run import Run
from capsjax.training.evaluation import middle
from capsjax.training.objective import (
    found,
)
from capsjax.votes import cast_votes

# Lengths: a capsule is dead if never above the first, saturated if never below the
# second.
DEAD, SATURATED = 0.05, 0.95
ROUNDS = (1, 2, 3, 5, 8)
_NUM_STEPS = 11
_VOTES_BYTES = 2**27  # For the votes that a figure holds at once.
_MOST_ROUTED = 64


class Lengths(NamedTuple):
    """The extremes of every capsule's length over a set of images.

    Attributes:
        longest: The largest length of each capsule.
        shortest: The smallest length.
    """

    longest: Float[np.ndarray, " capsules"]
    shortest: Float[np.ndarray, " capsules"]

    @property
    def num_dead(self) -> int:
        """Number of capsules that stand for nothing: never above ``DEAD``."""
        return int((self.longest <= DEAD).sum())

    @property
    def num_saturated(self) -> int:
        """Number of capsules that separate nothing: never below ``SATURATED``."""
        return int((self.shortest >= SATURATED).sum())


def primary_lengths(run: Run, dataset: Dataset) -> Lengths:
    """Returns the extremes of the primary capsules' lengths over a data set."""
    model = _staged(run)

    @jax.jit
    def extremes(params: Any, batch: Batch) -> tuple[Array, Array]:
        image, _ = middle(batch, model)
        capsules = model.apply(params, image, method=model.primary)
        length = safe_norm(capsules)
        return length.max(0), length.min(0)

    longest, shortest = [], []
    for _, batch in batches(run, dataset):
        high, low = extremes(run.params, batch)
        longest.append(np.ravel(high))
        shortest.append(np.ravel(low))
    return Lengths(np.max(longest, axis=0), np.min(shortest, axis=0))


def accuracy_by_rounds(
    run: Run, dataset: Dataset, rounds: Sequence[int]
) -> dict[int, float]:
    """Returns the accuracy of the same weights at each number of rounds."""
    model = _staged(run)
    counting: Any = {"kind": run.activation_kind}
    counting["is_counted"] = dataset.num_shown is not None

    @jax.jit
    def primary(params: Any, batch: Batch) -> Array:
        image, _ = middle(batch, model)
        return model.apply(params, image, method=model.primary)

    def counted(number: int) -> Callable[..., Array]:
        one = model.clone(routing=model.routing.with_rounds(number))

        # One program each: a joint one would hold a form of the weights per number.
        @jax.jit
        def num_right(params: Any, primary: Array, label: Array) -> Array:
            routed = one.apply(params, primary, method=one.route)
            return found(routed.activation, label, **counting)[0].sum()

        return num_right

    num_right = [counted(number) for number in rounds]
    right = np.zeros(len(rounds))
    for _, batch in batches(run, dataset):
        capsules = primary(run.params, batch)
        right += [float(each(run.params, capsules, batch.label)) for each in num_right]
    return dict(zip(rounds, (right / len(dataset)).tolist(), strict=True))


def _staged(run: Run) -> Staged:
    if not has_stages(run.model):
        raise ValueError(
            f"{type(run.model).__name__} has no primary capsules to look at: it lacks "
            "primary, route, primary_window or routing."
        )
    return run.model


def batches(run: Run, dataset: Dataset) -> Iterator[tuple[slice, Batch]]:
    """Yields a data set's images in batches of the run's ``eval_batch_size``."""
    step = run.config.eval_batch_size
    for start in range(0, len(dataset), step):
        part = slice(start, min(start + step, len(dataset)))
        yield part, dataset.batch(np.arange(part.start, part.stop))


class Coupling(NamedTuple):
    """The routing of images, round by round.

    Attributes:
        coupling: The couplings of every round.
        share: Contribution of each primary capsule to the longest class capsule of the
            last round: coupling times the vote's component along that round's pose.
        logit_change: Mean size of each round's addition to a logit.
    """

    coupling: Float[Array, "round n i j"]
    share: Float[Array, "round n i"]
    logit_change: Float[Array, " round"]

    @property
    def entropy(self) -> Float[np.ndarray, "round n i"]:
        """Entropy of each primary capsule's couplings, in bits.

        The share that goes to none of the classes counts as one more coupling.
        """
        c = np.asarray(self.coupling, np.float64)
        none = np.clip(1 - c.sum(-1, keepdims=True), 0, 1)
        c = np.concatenate([c, none], axis=-1)
        return -np.sum(c * np.log2(np.where(c > 0, c, 1)), axis=-1)


def couplings(
    run: Run, image: Float[Any, "n h w c"], num_iterations: int | None = None
) -> Coupling:
    """Routes images and keeps every round's couplings; holds all votes.

    Args:
        run: The run, with its network.
        image: Some images, with pixels from 0 to 1.
        num_iterations: Number of rounds; by default the network's own.
    """
    model = _staged(run)
    primary = model.apply(run.params, jnp.asarray(image), method=model.primary)
    capsules = primary.reshape(len(image), -1, primary.shape[-1])
    votes = cast_votes(capsules, run.params["params"]["class_caps"]["weight"])
    routing = model.routing.with_couplings()
    rounds: list[Any] = []
    for number in range(1, 1 + (num_iterations or routing.num_rounds or 1)):
        one = model.clone(routing=routing.with_rounds(number))
        rounds.append(one.apply(run.params, primary, method=one.route))
    winner = jnp.argmax(rounds[-1].activation, axis=-1)
    shares, changes = [], []
    for routed in rounds:
        direction = routed.pose / safe_norm(routed.pose, keepdims=True)
        along = jnp.einsum("nijd,njd->nij", votes, direction) * routed.coupling
        shares.append(jnp.take_along_axis(along, winner[:, None, None], -1)[..., 0])
        agreement = jnp.einsum("nijd,njd->nij", votes, routed.pose)
        changes.append(jnp.abs(agreement).mean())
    coupling = jnp.stack([routed.coupling for routed in rounds])
    return Coupling(coupling, jnp.stack(shares), jnp.stack(changes))


def most_routed(run: Run) -> int:
    """Returns the number of images whose votes a figure holds at once."""
    model = _staged(run)
    image = jnp.zeros((1, *model.image_shape), jnp.float32)
    capsules: Any = jax.eval_shape(
        lambda params: model.apply(params, image, method=model.primary), run.params
    )
    num_inputs = capsules.size // capsules.shape[-1]
    *_, num_outputs, dim, _ = run.params["params"]["class_caps"]["weight"].shape
    return min(_MOST_ROUTED, _VOTES_BYTES // (4 * num_inputs * num_outputs * dim))


def tweaked(
    run: Run,
    pose: Float[Any, " d"],
    label: int | np.integer,
    *,
    low: float,
    high: float,
) -> Float[np.ndarray, "d step h w c"]:
    """Draws a class capsule while each component of its pose moves."""
    moved = np.asarray(tweak_pose(pose, low=low, high=high, num_steps=_NUM_STEPS))
    dim = moved.shape[-1]
    poses = moved.reshape(-1, dim)
    drawn = run.draw(poses, np.full(len(poses), label))
    return drawn.reshape(dim, _NUM_STEPS, *run.model.image_shape)
