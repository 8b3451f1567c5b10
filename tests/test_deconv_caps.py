"""Deconvolutional capsules beside loops over positions, and in other people's code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from marks import first_of, variants
from places import blocks
from programs import apply, draw, init

from capsjax import ROUTINGS, DeconvCaps, DynamicRouting, EMRouting, SelfRouting
from capsjax.votes import cast_upsampled

cast = jax.jit(cast_upsampled, static_argnums=2)

THAT_FIT = [name for name in ROUTINGS if name != "self_routing"]


def upsampled(grid, weight, stride):
    """Returns the votes [H, W, t, j, d]: adds each input to the window that it sees."""
    height, width, num_types, _ = grid.shape
    positions, own, j, d, _ = weight.shape
    side = round(positions**0.5)
    first = (side - stride) // 2
    votes = np.zeros((stride * height, stride * width, num_types, j, d))
    for y, x, t in np.ndindex(height, width, num_types):
        for row, column in np.ndindex(side, side):
            place = stride * y + row - first, stride * x + column - first
            if all(0 <= n < size for n, size in zip(place, votes.shape, strict=False)):
                matrix = weight[side * row + column, t % own]
                votes[*place, t] += np.einsum("jdc,c->jd", matrix, grid[y, x, t])
    return votes


@pytest.mark.parametrize(
    "sides",
    first_of(
        ((4, 2, 1), (4, 3, 3)),
        [(4, 2, 1), (4, 3, 3), (5, 3, 3), (3, 2, 1), (3, 2, 3), (2, 2, 3), (3, 1, 1)],
    ),
)
def test_votes_of_a_larger_map_are_those_of_a_loop_over_positions(key, sides):
    side, stride, own = sides
    grid, weight = draw(key, 3, 4, 3, 2), draw(key, side**2, own, 2, 5, 2)
    votes = cast(grid, weight, stride)
    expected = upsampled(np.float64(grid), np.float64(weight), stride)
    np.testing.assert_allclose(votes, expected, rtol=1e-4, atol=1e-5)


def test_a_vote_adds_what_a_transposed_convolution_adds(key):
    grid, weight = draw(key, 2, 5, 4, 1, 3), draw(key, 16, 1, 2, 4, 3)
    kernel = weight.reshape(4, 4, 8, 3).transpose(0, 1, 3, 2)[::-1, ::-1]
    expected = jax.lax.conv_transpose(grid[..., 0, :], kernel, (2, 2), "SAME")
    votes = cast(grid, weight, 2)
    assert votes.shape == (2, 10, 8, 1, 2, 4)
    np.testing.assert_allclose(
        votes.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("share_types", [True, *variants(False)])
def test_the_layer_routes_the_votes_of_the_types_at_each_position(key, share_types):
    capsules = draw(key, 1, 3, 2, 4, 3)
    layer = DeconvCaps(2, 5, 4, share_types=share_types)
    params = init(layer, key, capsules)
    weight = np.asarray(params["params"]["weight"], np.float64)
    assert weight.shape == (16, 1 if share_types else 4, 2, 5, 3)
    routed = apply(layer, params, capsules)
    votes = upsampled(np.float64(capsules[0]), weight, 2)
    assert routed.pose.shape == (1, 6, 4, 2, 5)
    for row, column in [(0, 0), (2, 3), (5, 1)]:
        pose, _ = reference.dynamic_routing(
            votes[row, column], 3, bias=np.full((2, 5), 0.1)
        )
        np.testing.assert_allclose(
            routed.pose[0, row, column], pose, rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(
            routed.activation[0, row, column],
            np.linalg.norm(pose, axis=-1),
            rtol=1e-4,
        )


@pytest.mark.parametrize("name", first_of(("self_attention", "em"), THAT_FIT))
def test_every_algorithm_that_routes_votes_fits(key, name):
    capsules = jnp.asarray(draw(key, 2, 2, 3, 4, 3))
    layer = DeconvCaps(3, 4, routing=ROUTINGS[name](), input_activation="length")
    params = init(layer, key, capsules)

    @jax.jit
    def summed(params):
        routed = layer.apply(params, capsules, with_couplings=True)
        return routed.pose.sum() + routed.activation.sum(), routed

    (_, routed), gradient = jax.value_and_grad(summed, has_aux=True)(params)
    assert routed.pose.shape == (2, 4, 6, 3, 4)
    assert routed.activation.shape == (2, 4, 6, 3)
    np.testing.assert_allclose(
        routed.coupling.sum(-1), np.ones((2, 4, 6, 4)), rtol=1e-5
    )
    for leaf in jax.tree.leaves(gradient):
        assert np.isfinite(leaf).all()
    assert np.abs(gradient["params"]["weight"]).max() > 0


def test_a_votes_activation_is_the_mean_of_those_that_it_adds_up(key):
    # EM leaves out inputs whose activation is zero: with kernels of the stride's size a
    # position sees one capsule of each type.
    capsules = draw(key, 1, 2, 2, 3, 4)
    layer = DeconvCaps(2, 4, 2, routing=EMRouting())
    activation = np.ones((1, 2, 2, 3), np.float32)
    params = init(layer, key, capsules, activation)
    activation[0, 1, 0, 2] = 0
    other = np.copy(capsules)
    other[0, 1, 0, 2] += 1
    for with_zero, is_same in ((activation, True), (np.ones_like(activation), False)):
        change = np.abs(
            apply(layer, params, other, with_zero).pose
            - apply(layer, params, capsules, with_zero).pose
        )
        assert (change[0, 2:, :2].max() < 1e-5) == is_same
        assert change[0, :2].max() == 0
    # Positions at the border add up fewer capsules, all of them present.
    mean = layer.clone(kernel_size=5)._upsampled(jnp.ones((1, 2, 2, 3)))
    np.testing.assert_allclose(mean, np.ones((1, 4, 4, 3)), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 2, "stride": 3}, "kernel_size must be at least stride=3.* 2"),
        ({"routing": SelfRouting()}, "routing must be an algorithm that routes votes"),
        ({"routing": EMRouting()}, "EMRouting needs activations of the inputs"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(key, options, message):
    with pytest.raises(ValueError, match=message) as error:
        DeconvCaps(2, 4, **options).init(key, jnp.ones((1, 2, 2, 3, 4)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("routing", "share_types"),
    [
        (DynamicRouting(bias=0.1), True),
        pytest.param(DynamicRouting(), False, marks=pytest.mark.variant),
    ],
)
def test_squashed_capsules_start_as_long_as_the_next_layer_expects(
    key, routing, share_types
):
    for stride, types, dim in ((2, 3, 16), (1, 8, 6)):
        capsules = draw(key, 4, 6, 6, types, 8)
        capsules *= 0.35 / np.linalg.norm(capsules, axis=-1, keepdims=True)
        layer = DeconvCaps(4, dim, 4, stride, routing, share_types)
        pose = apply(layer, init(layer, key, capsules), capsules).pose
        inner = np.asarray(pose)[:, 3:-3, 3:-3] if stride == 2 else pose
        length = np.sqrt((np.asarray(inner) ** 2).sum(-1).mean())
        assert 0.6 < length / layer.start_length < 1.5


def test_it_is_an_nnx_module_whose_state_is_saved_and_restored(key):
    capsules = jnp.asarray(draw(key, 2, 3, 3, 2, 4))
    layer = DeconvCaps(3, 4)
    model = nnx.bridge.ToNNX(layer, rngs=nnx.Rngs(0))
    nnx.bridge.lazy_init(model, capsules)
    model.to_nnx__rngs = None
    saved = nnx.to_pure_dict(nnx.state(model))
    assert saved["weight"].shape == (16, 1, 3, 4, 4)
    params = {"params": saved}
    expected = apply(layer, params, capsules)
    call = nnx.jit(lambda model, capsules: model(capsules))
    np.testing.assert_array_equal(call(model, capsules).pose, expected.pose)
    # Into another module, of other weights.
    other = nnx.bridge.ToNNX(layer, rngs=nnx.Rngs(1))
    nnx.bridge.lazy_init(other, capsules)
    other.to_nnx__rngs = None
    assert np.abs(call(other, capsules).pose - expected.pose).max() > 1e-3
    fresh = nnx.state(other)
    nnx.replace_by_pure_dict(fresh, saved)
    nnx.update(other, fresh)
    np.testing.assert_array_equal(call(other, capsules).pose, expected.pose)


@pytest.mark.variant
def test_the_network_of_the_page_learns_to_segment():
    """In 100 steps of small images, which are enough for the background."""
    *parts, full = blocks("segmentation.md")
    found = {}
    exec("".join(parts), found)
    image, label = found["draw"](np.random.default_rng(1), 20, 16)
    assert set(np.unique(label)) == {0, 1, 2, 3}
    for steps, is_good in ((1, False), (100, True)):
        small = {"batch_size": 8, "side": 16}
        weights, predict = found["train"](found["Segmenter"](), steps=steps, **small)
        shares = found["intersection_over_union"](predict(weights, image), label)
        assert shares.shape == (4,)
        assert (shares[0] > 0.8) == is_good
    assert "steps=1500" in full
