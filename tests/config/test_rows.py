"""The recipes of experiments/routings.py, and the search that chose their numbers."""

import json
import re

import jax
import jax.numpy as jnp
import pytest
from places import ROOT

from capsjax import SelfRouting
from capsjax import config as configs
from capsjax.initializers import initializer, scaled_votes
from capsjax.models import num_parameters
from capsjax.models.network import bind, can_draw, init_variables


@pytest.fixture
def search(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import routings_search

    return routings_search


@pytest.fixture
def routings(search):
    return search.experiment()


def test_every_row_is_a_valid_recipe_of_the_same_network(routings):
    counts = {}
    for row in routings.ROWS:
        config = routings.get_config(row)
        configs.validate(config)
        assert configs.from_dict(configs.to_dict(config)) == config
        model = bind(config.model, (28, 28, 1), 10)
        assert not can_draw(model)
        variables = jax.eval_shape(lambda m=model: init_variables(m, jax.random.key(0)))
        counts[row] = num_parameters(variables["params"])
    assert counts["dynamic_3"] == counts["uniform"] == 1_071_808
    assert counts["uniform_shared"] == 1_071_808 - 575 * 10 * 16 * 8
    own = {"self_attention": 5760, "inverted_2": 33 + 16, "self_routing": 576 * 10 * 9}
    own |= {"em_2": 20, "em_3": 20, "variational_bayes_3": 20, "dynamic_2": 0}
    for row, extra in own.items():
        assert counts[row] == 1_071_808 + extra
    page = (ROOT / "docs" / "which-routing.md").read_text()
    for row, count in counts.items():
        assert re.search(rf"^\| .*`{row}`.* \| {count:,} \|", page, re.MULTILINE)
    # A comparison of parameters is fair within five percent.
    assert abs(counts["cnn"] / counts["dynamic_3"] - 1) < 0.05


def test_the_rows_differ_in_routing_and_searched_numbers_alone(routings):
    first, *others = (routings.get_config(row) for row in routings.ROWS if row != "cnn")
    for other in others:
        optimizer = configs.replaced(
            other.optimizer, learning_rate=first.optimizer.learning_rate
        )
        model = other.model.clone(
            routing=first.model.routing,
            weight_init=first.model.weight_init,
            share_weight=False,
        )
        assert optimizer == first.optimizer
        assert model == first.model
        assert (other.num_epochs, other.batch_size) == (10, 128)


def test_the_matrices_of_self_routing_have_no_effect_on_its_activations(key):
    capsules = jax.random.normal(key, (2, 3, 4))
    route_weight = jax.random.normal(jax.random.key(1), (3, 5, 4))
    operands = {"route_weight": route_weight, "route_bias": jnp.ones((3, 5))}

    def activation(weight):
        routed = SelfRouting().from_capsules(
            capsules, weight, jnp.full((2, 3), 0.5), parameters=operands
        )
        return routed.activation.max()

    gradient = jax.grad(activation)(jax.random.normal(key, (3, 5, 6, 4)))
    assert not gradient.any()


def test_a_scale_of_one_is_the_layers_own(routings):
    for row in ("uniform", "em_2"):
        model = routings.recipe(row, routings.Choice(0.001, 1.0)).model
        start = initializer(model.weight_init)
        own = model.routing.vote_deviation
        scaled = scaled_votes(vote_deviation=own and routings.VOTE_DEVIATION)
        shape = (576, 10, 16, 8)
        drawn = [
            float(one(jax.random.key(0), shape, "float32").std())
            for one in (start, scaled)
        ]
        assert drawn[0] == pytest.approx(drawn[1], rel=1e-3)


def test_the_search_tries_as_many_for_each_row_and_keeps_the_least_loss(
    search, routings, tmp_path, monkeypatch
):
    losses = {(0.001, 3.0): 0.2, (0.003, 3.0): 0.1, (0.001, 0.35): 0.3}

    def complete(config, workdir):
        assert not config.test
        assert config.num_epochs == 1
        seen.append(config)
        rate = config.optimizer.learning_rate
        other = choices[len(seen) - 1].other
        assert rate == choices[len(seen) - 1].learning_rate
        return {"validation": {"loss": losses.get((rate, other), 0.5), "accuracy": 0.9}}

    monkeypatch.setattr(search, "complete", complete)
    path = tmp_path / "search.jsonl"
    for row, others in (("em_2", routings.SCALES), ("cnn", routings.DROPOUTS)):
        seen, best = [], {"em_2": 3.0, "cnn": 0.35}[row]
        choices = [routings.Choice(0.001, other) for other in others]
        choices.append(routings.Choice(0.003, best))
        found = search.search(routings, path, row)
        rate = {"em_2": 0.003, "cnn": 0.001}[row]
        assert found["choice"] == {"learning_rate": rate, "other": best}
        assert len(seen) == 7
        # A second search reads the file.
        assert search.search(routings, path, row)["choice"] == found["choice"]
        assert len(seen) == 7
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["row"] for line in lines] == ["em_2"] * 7 + ["cnn"] * 7


def test_a_loss_that_is_no_number_is_never_the_best(search):
    tries = [{"loss": float("nan")}, {"loss": 2.0}, {"loss": 1.0}]
    assert search.best(tries) == {"loss": 1.0}
