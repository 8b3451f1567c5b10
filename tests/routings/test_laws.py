"""Every cell of the table of laws in docs/routing.md, the yes and the no."""

import functools
import re
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from algorithms import score_of
from places import ROOT

from capsjax import ROUTINGS

I, J, D = 8, 3, 4  # noqa: E741


class Inputs(NamedTuple):
    """What an algorithm gets: votes, and what it must not take from them."""

    votes: np.ndarray
    activation: np.ndarray
    logit: np.ndarray

    def change(self, function):
        """Changes the inputs, in all three arrays."""
        return Inputs(*(function(array) for array in self))


@functools.cache
def inputs():
    random = np.random.default_rng(0)
    votes = random.normal(size=(I, J, D))
    return Inputs(votes, random.uniform(0.2, 1, I), random.normal(size=(I, J)))


def route(algorithm, given):
    """Routes without a trained bias: the laws hold, or not, of the bare equations."""
    votes, activation, logit = (jnp.asarray(array, "f4") for array in given)
    parameters = {}
    if "score" in algorithm.declared_parameters:
        parameters["score"] = score_of(D)
    return algorithm(
        votes,
        activation if algorithm.takes_activation else None,
        parameters=parameters,
        initial_logit=logit,
    )


def with_votes(votes):
    return inputs()._replace(votes=votes)


def twice():
    return inputs().change(lambda array: np.concatenate([array, array]))


def away(actual, expected):
    return np.abs(np.asarray(actual) - np.asarray(expected)).max()


# ---- laws: by how much is each broken?


def sums_to_one(route):
    return away(route(inputs()).coupling.sum(-1), 1)


def ignores_the_order_of_inputs(route):
    actual = route(inputs().change(lambda array: array[::-1]))
    return away(actual.pose, route(inputs()).pose)


def follows_the_order_of_outputs(route):
    own = inputs()
    order = [2, 0, 1]
    moved = own._replace(votes=own.votes[:, order], logit=own.logit[:, order])
    return away(route(moved).pose, route(own).pose[np.array(order)])


def negates_poses(route):
    negated = route(with_votes(-inputs().votes))
    return away(negated.pose, -route(inputs()).pose)


def keeps_activations_of_negated_votes(route):
    negated = route(with_votes(-inputs().votes))
    return away(negated.activation, route(inputs()).activation)


def rotates_poses(route):
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(D, D)))[0]
    rotated = route(with_votes(inputs().votes @ rotation))
    return away(rotated.pose, route(inputs()).pose @ rotation)


def shifts_poses(route):
    shifted = route(with_votes(inputs().votes + 1))
    return away(shifted.pose, route(inputs()).pose + 1)


def averages(route):
    same = np.broadcast_to(inputs().votes[:1], (I, J, D))
    return away(route(with_votes(same)).pose, same[0])


def ignores_zero_votes(route):
    own = twice()
    own.votes[I:] = 0
    return away(route(own).pose, route(inputs()).pose)


def ignores_how_often_inputs_come(route):
    actual, expected = route(twice()), route(inputs())
    return max(away(a, e) for a, e in zip(actual[:2], expected[:2], strict=True))


def ignores_inactive_inputs(route):
    own = twice()
    own.votes[I:] += 1
    own.activation[I:] = 0
    actual, expected = route(own), route(inputs())
    return max(away(a, e) for a, e in zip(actual[:2], expected[:2], strict=True))


LAWS = {
    "the couplings of an input sum to one": sums_to_one,
    "the order of the inputs does not matter": ignores_the_order_of_inputs,
    "outputs that change places take their poses along": follows_the_order_of_outputs,
    "negated votes negate the poses": negates_poses,
    "negated votes keep the activations": keeps_activations_of_negated_votes,
    "rotated votes rotate the poses": rotates_poses,
    "shifted votes shift the poses": shifts_poses,
    "a vote that all inputs cast is the pose": averages,
    "inputs that vote zero do not change the poses": ignores_zero_votes,
    "giving every input twice changes nothing": ignores_how_often_inputs_come,
    "inputs with an activation of zero change nothing": ignores_inactive_inputs,
}


def table():
    """Returns the page's cells, by law and algorithm."""
    text = (ROOT / "docs" / "routing.md").read_text()
    lines = re.search(r"\| law \|.*?\n\n", text, re.S)[0].strip().splitlines()
    head, _, *rows = ([cell.strip(" `") for cell in x[1:-1].split("|")] for x in lines)
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def test_the_table_has_every_law_and_every_algorithm():
    cells = table()
    assert list(cells) == list(LAWS)
    assert all(list(row) == list(ROUTINGS) for row in cells.values())


@pytest.mark.parametrize("word", ROUTINGS)
def test_an_algorithm_keeps_the_laws_that_the_page_lists_and_no_others(word):
    algorithm = ROUTINGS[word]()
    own = functools.partial(route, algorithm)
    for name, law in LAWS.items():
        cell = table()[name][word]
        if "activation of zero" in name and not algorithm.takes_activation:
            assert cell == "-"
            continue
        broken_by = law(own)
        # Nothing between: a law holds to rounding, or is visibly broken.
        assert cell == ("yes" if broken_by < 1e-4 else "no"), (name, broken_by)
        assert broken_by < 1e-4 or broken_by > 1e-3, (name, broken_by)
