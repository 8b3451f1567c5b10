"""Looks inside a trained network: couplings, rounds, tweaks."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from capsjax.analysis.images import batches
from capsjax.data import Batch, Dataset
from capsjax.diagnostics import RoutingStatistics, coupling_entropy
from capsjax.models.network import Staged, has_stages
from capsjax.ops import safe_norm, tweak_pose
from capsjax.storage.run import Run
from capsjax.training.evaluation import middle
from capsjax.training.objective import (
    verdict,
)
from capsjax.votes import cast_votes

ROUNDS = (1, 2, 3, 5, 8)
_NUM_STEPS = 11
_VOTES_BYTES = 2**27  # For the votes that a figure holds at once.
_MOST_ROUTED = 64


def predictions_by_rounds(
    run: Run, dataset: Dataset, rounds: Sequence[int]
) -> dict[int, Bool[np.ndarray, "n classes"]]:
    """Returns the classes that the same weights name at each number of rounds."""
    model = _staged(run)
    judging: Any = {"kind": run.activation_kind}
    judging["is_counted"] = dataset.num_shown is not None

    @jax.jit
    def primary(params: Any, batch: Batch) -> Array:
        image, _ = middle(batch, model)
        return model.apply(params, image, method=model.primary)

    def judged(number: int) -> Callable[..., Array]:
        one = model.clone(routing=model.routing.with_rounds(number))

        # One program each: a joint one would hold a form of the weights per number.
        @jax.jit
        def named(params: Any, primary: Array, label: Array) -> Array:
            routed = one.apply(params, primary, method=one.route)
            return verdict(routed.activation, label, **judging) > 0

        return named

    each = {number: judged(number) for number in rounds}
    parts = {number: [] for number in rounds}
    for _, batch in batches(dataset, run.config.eval_batch_size):
        capsules = primary(run.params, batch)
        for number, named in each.items():
            parts[number].append(np.asarray(named(run.params, capsules, batch.label)))
    return {number: np.concatenate(named) for number, named in parts.items()}


def _staged(run: Run) -> Staged:
    if not has_stages(run.model):
        raise ValueError(
            f"{type(run.model).__name__} has no primary capsules to look at: it lacks "
            "primary, route, primary_window or routing."
        )
    return run.model


class Coupling(NamedTuple):
    """The routing of images, round by round.

    Attributes:
        coupling: The couplings of every round.
        share: Contribution of each primary capsule to the longest class capsule of the
            last round: coupling times the vote's component along that round's pose.
        logit_change: Mean size of each round's addition to a logit.
        measures: The measures of each round's couplings: see ``RoutingStatistics``.
    """

    coupling: Float[Array, "round n i j"]
    share: Float[Array, "round n i"]
    logit_change: Float[Array, " round"]
    measures: list[dict[str, float]]

    @property
    def entropy(self) -> Float[np.ndarray, "round n i"]:
        """Entropy of each primary capsule's couplings, in bits.

        The share that goes to none of the classes counts as one more coupling.
        """
        nats = coupling_entropy(self.coupling, none_of_the_above=True)
        return np.asarray(nats) / np.log(2)


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
    length, nowhere = safe_norm(capsules), not routing.couplings_sum_to_one
    measures = [
        RoutingStatistics.of(
            *(routed.coupling, length, routed.activation), none_of_the_above=nowhere
        ).measures()
        for routed in rounds
    ]
    return Coupling(
        jnp.stack([routed.coupling for routed in rounds]),
        jnp.stack(shares),
        jnp.stack(changes),
        [{name: float(value) for name, value in one.items()} for one in measures],
    )


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
