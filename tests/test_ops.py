import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.test_util import check_grads
from programs import draw

from capsjax import flatten_capsules, safe_norm, squash, tweak_pose
from capsjax.ops import exponential_squash

ULP = 2.0**-23
LENGTHS = [10.0**k for k in range(-16, 19)]


def vectors(length, dim=8, count=50):
    x = np.random.default_rng(dim).normal(size=(count, dim))
    x = x / np.linalg.norm(x, axis=-1, keepdims=True) * length
    return x.astype(np.float32)


# As networks use them; outside of jit they are tested further below.
norm_in_jit, squash_in_jit = jax.jit(safe_norm), jax.jit(squash)


@pytest.mark.parametrize("dim", [1, 2, 8, 257])
@pytest.mark.numerics
def test_safe_norm_is_exact_from_1e_16_to_1e18(dim):
    for length in LENGTHS:
        x = vectors(length, dim)
        expected = np.linalg.norm(x.astype(np.float64), axis=-1)
        np.testing.assert_allclose(norm_in_jit(x), expected, rtol=2.5e-7)


@pytest.mark.parametrize("dim", [1, 2, 8, 257])
@pytest.mark.numerics
def test_squash_is_exact_relative_to_its_length(dim):
    # Below 1e-16 the squashed length, its square, would leave float32.
    for length in LENGTHS:
        x = vectors(length, dim)
        expected = np.stack([reference.squash(row) for row in x.astype(np.float64)])
        error = np.linalg.norm(np.asarray(squash_in_jit(x)) - expected, axis=-1)
        assert np.all(error <= 4e-7 * np.linalg.norm(expected, axis=-1)), length


@pytest.mark.parametrize("dim", [1, 2, 3, 8, 16, 1024])
@pytest.mark.numerics
def test_a_squashed_vector_is_at_most_2_ulp_longer_than_one(dim):
    for length in LENGTHS:
        v = np.asarray(squash_in_jit(vectors(length, dim, 500)), np.float64)
        assert np.linalg.norm(v, axis=-1).max() <= 1 + 2 * ULP


def test_a_long_vector_squashes_to_a_unit_vector():
    x = vectors(1e10)
    np.testing.assert_allclose(np.linalg.norm(squash(x), axis=-1), 1, rtol=3e-7)


@pytest.mark.parametrize("function", [safe_norm, squash])
def test_gradient_at_the_zero_vector_is_exactly_zero(function):
    for shape in [(3,), (4, 5), (2, 3, 8)]:
        gradient = jax.jit(jax.grad(lambda x: function(x).sum()))(np.zeros(shape, "f4"))
        np.testing.assert_array_equal(gradient, np.zeros(shape))


def test_a_zero_vector_does_not_disturb_its_neighbours():
    x = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    gradient = jax.grad(lambda x: safe_norm(x).sum())(x)
    np.testing.assert_allclose(gradient, [[0, 0], [0.6, 0.8]], rtol=1e-6)


@jax.jit
def norm_gradient(x):
    return jax.grad(lambda x: safe_norm(x).sum())(x)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.numerics
def test_norm_gradient_is_the_unit_vector_at_every_length(length):
    x = vectors(length)
    gradient = norm_gradient(x)
    x = x.astype(np.float64)
    expected = x / np.linalg.norm(x, axis=-1, keepdims=True)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-7)


squash_jacobian = jax.jit(jax.jacobian(squash))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.numerics
def test_squash_jacobian_is_exact_relative_to_its_size(length):
    x = vectors(length, 4, 1)[0].astype(np.float64)
    n = np.linalg.norm(x)
    u = x / n
    along, across = 2 * n / (1 + n**2) ** 2, n / (1 + n**2)
    expected = across * (np.eye(4) - np.outer(u, u)) + along * np.outer(u, u)
    actual = np.asarray(squash_jacobian(x.astype(np.float32)), np.float64)
    assert np.linalg.norm(actual - expected) <= 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("length", [0, 1e-30, *LENGTHS])
@pytest.mark.numerics
def test_the_exponential_squash_and_its_jacobian_are_exact(length):
    x = vectors(length, 4, 1)[0].astype(np.float64)
    n = np.linalg.norm(x)
    u = x / n if n else x
    along, across = np.exp(-n), -np.expm1(-n) / n if n else 1
    expected = across * (np.eye(4) - np.outer(u, u)) + along * np.outer(u, u)
    s = x.astype(np.float32)
    actual = np.asarray(jax.jacobian(exponential_squash)(s), np.float64)
    assert np.linalg.norm(actual - expected) <= 1e-6 * np.linalg.norm(expected)
    v = np.asarray(exponential_squash(s), np.float64)
    assert np.linalg.norm(v - across * x) <= 4e-7 * across * n
    assert np.linalg.norm(v) <= 1 + 2 * ULP


@pytest.mark.slow
@pytest.mark.parametrize("function", [safe_norm, squash, exponential_squash])
def test_second_derivatives_are_finite_everywhere(function):
    hessian = jax.jit(jax.hessian(lambda x: function(x).sum()))
    for x in [np.zeros(4, np.float32), *(vectors(n, 4, 1)[0] for n in LENGTHS)]:
        assert np.isfinite(hessian(x)).all()


@pytest.mark.parametrize("function", [safe_norm, squash, exponential_squash])
@pytest.mark.slow
def test_first_and_second_derivatives_equal_finite_differences(function):
    with jax.enable_x64(True):
        for length in [0.01, 0.7, 1.0, 1.3, 30.0]:
            x = vectors(length, 3, 4).astype(np.float64)
            step = 1e-4 * length
            check_grads(jax.jit(function), (x,), order=2, eps=step)


@pytest.mark.parametrize("axis", [0, 1, -2])
def test_axis_and_keepdims_work_as_in_numpy(key, axis):
    x = draw(key, 3, 4, 5)
    for keepdims in (False, True):
        expected = np.linalg.norm(x, axis=axis, keepdims=keepdims)
        norm = jax.jit(functools.partial(safe_norm, axis=axis, keepdims=keepdims))
        actual = norm(x)
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
    expected = np.moveaxis(jax.jit(squash)(np.moveaxis(x, axis, -1)), -1, axis)
    actual = jax.jit(functools.partial(squash, axis=axis))(x)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("function", [safe_norm, squash])
def test_narrow_types_are_computed_in_float32_and_returned_as_they_came(function, key):
    # 0.005 squared is below float16's smallest number.
    x = (0.005 * draw(key, 20, 8)).astype(np.float16)
    in_jit = jax.jit(function)
    expected = np.asarray(in_jit(x.astype(np.float32))).astype(np.float16)
    actual = in_jit(x)
    assert actual.dtype == jnp.float16
    np.testing.assert_array_equal(actual, expected)
    assert in_jit(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    assert in_jit(np.arange(3)).dtype == jnp.float32


def test_complex_vectors_are_refused():
    with pytest.raises(ValueError, match="must be real"):
        safe_norm(jnp.ones(3, jnp.complex64))


def test_a_tweak_moves_one_component_by_one_step(key):
    pose = jax.random.normal(key, (2, 3, 4))
    tweaked = tweak_pose(pose, low=-0.5, high=0.5, num_steps=11)
    assert tweaked.shape == (2, 3, 4, 11, 4)
    for k, n in np.ndindex(4, 11):
        expected = np.array(pose)
        expected[..., k] += -0.5 + 0.1 * n
        np.testing.assert_allclose(tweaked[:, :, k, n], expected, atol=1e-6)


def test_the_default_tweak_is_the_paper_s():
    tweaked = tweak_pose(np.zeros(16))
    steps = np.linspace(-0.25, 0.25, 11)
    assert tweaked.shape == (16, 11, 16)
    np.testing.assert_allclose(tweaked[3, :, 3], steps, atol=1e-7)
    assert tweak_pose(np.zeros(2), low=1.0, high=5.0, num_steps=1).tolist() == [
        [[1, 0]],
        [[0, 1]],
    ]


def test_a_tweak_works_under_jit_vmap_and_keeps_the_type(key):
    pose = jax.random.normal(key, (3, 4), jnp.bfloat16)
    expected = tweak_pose(pose, num_steps=3)
    assert expected.dtype == jnp.bfloat16
    tweak = jax.jit(jax.vmap(lambda p: tweak_pose(p, num_steps=3)))
    np.testing.assert_array_equal(tweak(pose), expected)


@pytest.mark.parametrize(
    ("pose", "options", "message"),
    [
        (np.zeros(4), {"num_steps": 0}, "num_steps must be at least 1, got 0"),
        (np.zeros(()), {}, "pose must have vectors along axis -1, got shape"),
    ],
)
def test_a_wrong_tweak_is_refused(pose, options, message):
    with pytest.raises(ValueError, match=message):
        tweak_pose(pose, **options)


def test_a_map_becomes_a_list_of_capsules_from_jax_s_and_numpy_s_arrays():
    pose = np.arange(2 * 3 * 4 * 5 * 6, dtype="f4").reshape(2, 3, 4, 5, 6)
    for taken in (pose, jnp.asarray(pose)):
        flat, activation = flatten_capsules(taken, taken[..., 0])
        assert isinstance(flat, jax.Array)
        np.testing.assert_array_equal(flat[1, (2 * 4 + 3) * 5 + 4], pose[1, 2, 3, 4])
        np.testing.assert_array_equal(activation, flat[..., 0])
    assert flatten_capsules(pose)[1] is None
