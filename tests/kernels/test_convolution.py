"""The convolution against float64, and under every transformation in JAX."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P
from marks import slow, variants

from capsjax.kernels import convolution
from capsjax.kernels.convolution import _choose_plan as choose_plan
from capsjax.kernels.convolution import (
    conv_general_dilated,
    convolve_prepared,
    prepare_kernel,
)

LAYOUT = ("NHWC", "HWIO", "NHWC")
FORMS = (
    ("tiles", np.float32),
    ("tiles", jnp.bfloat16),
    ("patches", np.float32),
    ("patches", jnp.bfloat16),
    ("ordinary", np.float32),
    ("ordinary", jnp.bfloat16),
    ("phases", np.float32),
    ("phases", jnp.bfloat16),
)

# image, kernel, strides, padding
SHAPES = {
    "primary capsules": ((2, 20, 20, 16), (9, 9, 16, 8), (2, 2), "VALID"),
    "one tile, stride 1": ((3, 9, 9, 16), (5, 5, 16, 4), (1, 1), "VALID"),
    "same, several tiles": ((2, 13, 17, 16), (5, 5, 16, 4), (1, 1), "SAME"),
    "same, stride 2": ((2, 14, 11, 24), (7, 7, 24, 5), (2, 2), "SAME"),
    "stride 3, cropped": ((2, 30, 24, 16), (7, 7, 16, 8), (3, 3), [(0, 1), (-1, 2)]),
    "nothing square": ((2, 13, 18, 16), (5, 8, 16, 4), (2, 1), [(1, 2), (0, 3)]),
    "left-over pixels": ((1, 23, 22, 16), (9, 9, 16, 4), (2, 2), "VALID"),
    "first layer": ((2, 28, 28, 1), (9, 9, 1, 8), (1, 1), "VALID"),
    "first layer, colour": ((2, 15, 12, 3), (5, 5, 3, 8), (2, 2), [(1, 1), (2, 2)]),
    "small window": ((2, 8, 8, 20), (3, 3, 20, 8), (1, 1), "SAME"),
    "small window, stride 2": ((2, 9, 9, 20), (3, 3, 20, 8), (2, 2), "SAME"),
    "window smaller than stride": ((2, 9, 8, 20), (1, 1, 20, 8), (2, 2), "VALID"),
}


def draw(key, image_shape, kernel_shape, strides, padding):
    """Draws a ReLU's output (its mean is not zero), a kernel, a gradient of the result.

    NumPy draws: jax.random would compile once for each of these many shapes.
    """
    normal = np.random.default_rng(np.asarray(jax.random.key_data(key))).normal
    image, kernel = (
        normal(size=shape).astype(np.float32) for shape in (image_shape, kernel_shape)
    )
    shape = jax.eval_shape(plain(strides, padding), image, kernel).shape
    gradient = normal(size=shape).astype(np.float32)
    return tuple(map(jnp.asarray, (np.maximum(image, 0), kernel, gradient)))


def plain(strides, padding, function=lax.conv_general_dilated, **options):
    """Returns the function as Flax calls it."""
    return lambda image, kernel: function(
        image, kernel, strides, padding, dimension_numbers=LAYOUT, **options
    )


def value_and_gradients(function, image, kernel, gradient):
    value, pullback = jax.vjp(function, image, kernel)
    return value, *pullback(gradient.astype(value.dtype))


def exact(strides, padding, *operands):
    """Computes JAX's own convolution and gradients in float64."""
    function = functools.partial(value_and_gradients, plain(strides, padding))
    with jax.enable_x64(True):
        operands = [jnp.asarray(np.asarray(x), jnp.float64) for x in operands]
        return [np.asarray(x) for x in jax.jit(function)(*operands)]


def error(actual, expected) -> float:
    """Returns the difference's root mean square, relative to the expected array's."""
    difference = np.asarray(actual, np.float64) - np.asarray(expected, np.float64)
    return np.sqrt(np.mean(difference**2) / np.mean(np.square(expected)))


def slope(actual, expected) -> float:
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    return np.sum(actual * expected) / np.sum(expected**2)


# One for each kind of window: LLVM's optimiser takes four times as long.
OPTIMISED = ("primary capsules", "same, several tiles", "first layer, colour")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(name, marks=getattr(pytest.mark, mark))
        for name in SHAPES
        for mark in ["numerics" if name in OPTIMISED else "slow"]
    ],
)
def test_every_form_equals_the_direct_convolution_and_its_gradients(key, case):
    image_shape, kernel_shape, *how = SHAPES[case]
    image, kernel, gradient = draw(key, image_shape, kernel_shape, *how)
    expected = exact(*how, image, kernel, gradient)
    # Narrow numbers where the optimiser runs, too.
    for form, dtype in FORMS if case in OPTIMISED else FORMS[::2]:
        plan = choose_plan(image_shape, kernel_shape, *how, dtype)._replace(form=form)
        value = convolution._forward(image, kernel, plan)
        gradients = convolution._backward(image, kernel, gradient, plan)
        for a, e in zip((value, *gradients), expected, strict=True):
            # Toom's points take 3e-6, the others 1e-6.
            assert error(a, e) < (3e-6 if dtype == np.float32 else 5e-3), (form, dtype)
            assert a.dtype == jnp.float32


@pytest.mark.parametrize("dtype", [np.float32, *slow(jnp.bfloat16)])
def test_images_taken_in_parts_give_the_same(key, dtype):
    image_shape, kernel_shape, *how = (6, 9, 10, 16), (3, 3, 16, 8), (1, 1), "SAME"
    operands = draw(key, image_shape, kernel_shape, *how)
    plan = choose_plan(image_shape, kernel_shape, *how, dtype)
    plan = plan._replace(form="tiles", tile=(4, 4))
    whole, parts = (
        [
            convolution._forward(*operands[:2], one),
            *convolution._backward(*operands, one),
        ]
        for one in (plan, plan._replace(part=2))
    )
    for a, e in zip(parts, whole, strict=True):
        assert error(a, e) < (1e-6 if dtype == np.float32 else 2e-3)


def test_large_maps_of_small_kernels_are_taken_in_parts():
    plan = choose_plan((100, 28, 28, 128), (3, 3, 128, 128), (1, 1), "SAME", np.float32)
    assert (plan.form, plan.tile, plan.part) == ("tiles", (4, 4), 5)
    paper = choose_plan((128, 20, 20, 256), (9, 9, 256, 256), (2, 2), "VALID", "f4")
    assert (paper.form, paper.tile, paper.part) == ("tiles", (6, 6), 0)


def windows(image, kernel_shape, stride):
    """Returns all windows of one image as rows, by NumPy."""
    view = np.lib.stride_tricks.sliding_window_view(image, kernel_shape[:2], (0, 1))
    view = view[::stride, ::stride].transpose(0, 1, 3, 4, 2)
    return view.reshape(*view.shape[:2], -1)


def paper_reference(image, kernel, gradient, stride):
    """Computes a VALID convolution and its gradients as float64 matrix products."""
    image, kernel, gradient = (
        np.asarray(x, np.float64) for x in (image, kernel, gradient)
    )
    rows = np.stack([windows(x, kernel.shape, stride) for x in image])
    rows, flat = rows.reshape(-1, rows.shape[-1]), kernel.reshape(-1, kernel.shape[3])
    gradient_rows = gradient.reshape(-1, kernel.shape[3])
    value = (rows @ flat).reshape(gradient.shape)
    kernel_gradient = (rows.T @ gradient_rows).reshape(kernel.shape)
    scattered = (gradient_rows @ flat.T).reshape(*gradient.shape[:3], *kernel.shape[:3])
    image_gradient = np.zeros_like(image)
    height, width = gradient.shape[1:3]
    for i, j in np.ndindex(kernel.shape[:2]):
        image_gradient[
            :, i : i + stride * height : stride, j : j + stride * width : stride
        ] += scattered[:, :, :, i, j]
    return value, image_gradient, kernel_gradient


# The chosen tile changes with the batch, so two batches are needed.
@pytest.mark.parametrize("batch", [4, *variants(40)])
@pytest.mark.numerics
def test_primary_capsules_are_exact_at_the_paper_s_own_size(key, batch):
    how = (2, 2), "VALID"
    operands = draw(key, (batch, 20, 20, 256), (9, 9, 256, 256), *how)
    expected = paper_reference(*operands, 2)
    for dtype, bound in ((None, 5e-6), (jnp.bfloat16, 5e-3)):
        function = plain(*how, conv_general_dilated, compute_dtype=dtype)
        actual = jax.jit(functools.partial(value_and_gradients, function))(*operands)
        for a, e in zip(actual, expected, strict=True):
            assert a.dtype == jnp.float32
            assert error(a, e) < bound
            assert abs(slope(a, e) - 1) < (1e-6 if dtype is None else 1e-3)


# One shape for each form; the rule would not choose them all for small shapes.
CHOSEN = {
    "tiles": "primary capsules",
    "patches": "first layer, colour",
    "ordinary": "one tile, stride 1",
    "phases": "left-over pixels",
}


@pytest.fixture(params=CHOSEN)
def case(request, monkeypatch):
    """Returns a shape, and forces its form."""
    monkeypatch.setattr(convolution, "_choose_form", lambda *_: request.param)
    return SHAPES[CHOSEN[request.param]]


def test_the_rule_takes_every_form():
    def form(image_shape, kernel_shape, stride=2):
        strides = (stride, stride)
        return choose_plan(image_shape, kernel_shape, strides, "VALID", np.float32).form

    assert form((128, 20, 20, 256), (9, 9, 256, 256)) == "tiles"
    assert form((1, 20, 20, 256), (9, 9, 256, 256)) == "patches"
    assert form((128, 28, 28, 1), (9, 9, 1, 256)) == "patches"
    assert form((64, 24, 24, 16), (3, 3, 16, 32), stride=1) == "ordinary"
    assert form((64, 24, 24, 16), (3, 3, 16, 32), stride=2) == "tiles"
    assert form((64, 20, 20, 16), (9, 9, 16, 128), stride=1) == "tiles"


def test_an_accelerator_does_not_multiply_a_stride_s_zeros():
    # XLA would multiply the zeros between the gradient's numbers if the window exceeds
    # the outputs: an array of 11 x 11 with only 6 x 6 not zero.
    def convolutions(size, window, channels):
        shapes = (4, size, size, channels), (window, window, channels, 16)
        operands = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        function = plain((2, 2), "VALID", conv_general_dilated)
        gradient = jax.grad(lambda *x: jnp.sum(function(*x) ** 2), (0, 1))
        exported = jax.export.export(jax.jit(gradient), platforms=["cuda"])(*operands)
        text = exported.mlir_module()
        return text.count("stablehlo.convolution"), "dilate = [2, 2]" in text

    assert convolutions(20, 9, 16) == (3, False)
    assert convolutions(40, 9, 16) == (3, True)
    assert convolutions(20, 9, 1) == (0, False)


def test_a_prepared_kernel_pays_for_fewer_images():
    how = ((2, 2), "VALID")
    kernel = jnp.zeros((9, 9, 32, 4))

    def forms(batch):
        shape = (batch, 20, 20, 32)
        every_time = choose_plan(shape, kernel.shape, *how, np.dtype(np.float32))
        return every_time.form, prepare_kernel(kernel, shape, *how).plan.form

    assert forms(1) == ("patches", "patches")
    assert forms(4) == ("patches", "tiles")
    assert forms(16) == ("tiles", "tiles")


def test_eager_equals_jit(key, case):
    image_shape, kernel_shape, *how = case
    operands = draw(key, image_shape, kernel_shape, *how)
    function = functools.partial(value_and_gradients, plain(*how, conv_general_dilated))
    for e, j in zip(function(*operands), jax.jit(function)(*operands), strict=True):
        np.testing.assert_allclose(e, j, rtol=1e-5, atol=1e-4)


def test_vmap_equals_one_by_one(key, case):
    image_shape, kernel_shape, *how = case
    function = functools.partial(value_and_gradients, plain(*how, conv_general_dilated))
    many = [draw(k, image_shape, kernel_shape, *how) for k in jax.random.split(key, 2)]
    mapped = jax.jit(jax.vmap(function))(*map(jnp.stack, zip(*many, strict=True)))
    one_by_one = [jax.jit(function)(*operands) for operands in many]
    for m, o in zip(mapped, zip(*one_by_one, strict=True), strict=True):
        assert error(m, np.stack(o)) < 3e-6


def loss(how, image, kernel):
    """Returns a number that depends on every output differently."""
    return jnp.sum(jnp.sin(plain(*how, conv_general_dilated)(image, kernel)))


def sharded(body, check_vma):
    """Maps over devices: shares of images and the whole kernel, so for gradients."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("device",))
    specs = {"in_specs": (P("device"), P()), "out_specs": (P("device"), P())}
    return jax.jit(jax.shard_map(body, mesh=mesh, check_vma=check_vma, **specs))


@pytest.mark.parametrize("parallel", ["pmap", "shard_map", "shard_map unchecked"])
def test_gradients_on_four_devices_equal_gradients_on_one(key, case, parallel):
    (_, *size), kernel_shape, *how = case
    image, kernel, _ = draw(key, (4, *size), kernel_shape, *how)
    gradient = jax.grad(functools.partial(loss, how), argnums=(0, 1))
    expected = jax.jit(gradient)(image, kernel)

    def summed_by_hand(image, kernel):
        image_gradient, kernel_gradient = gradient(image, kernel)
        return image_gradient, jax.lax.psum(kernel_gradient, "device")

    if parallel == "pmap":
        mapped = jax.pmap(
            summed_by_hand, "device", in_axes=(0, None), out_axes=(0, None)
        )
        image_gradient, kernel_gradient = mapped(image[:, None], kernel)
        actual = image_gradient[:, 0], kernel_gradient
    elif parallel == "shard_map":
        actual = sharded(gradient, check_vma=True)(image, kernel)
    else:
        actual = sharded(summed_by_hand, check_vma=False)(image, kernel)
    for a, e in zip(actual, expected, strict=True):
        # A device's share may take another form. Toom's rounding is 7e-6 on JAX 0.12,
        # and 1.2e-5 on an EPYC with AVX2 only.
        assert error(a, e) < 2e-5


def test_the_kernel_may_vary_while_the_images_do_not(key):
    image_shape, kernel_shape, *how = SHAPES["primary capsules"]
    image, kernel, _ = draw(key, image_shape, kernel_shape, *how)
    kernels = jnp.stack([kernel, 2 * kernel, -kernel, 0 * kernel])
    gradient = jax.grad(lambda k, x: loss(how, x, k[0]), argnums=(1, 0))
    actual = sharded(lambda k, x: gradient(k, x)[::-1], True)(kernels, image)
    one = jax.jit(jax.grad(functools.partial(loss, how), argnums=(0, 1)))
    per_kernel = [one(image, k) for k in kernels]
    assert error(actual[0], np.stack([k for _, k in per_kernel])) < 3e-6
    assert error(actual[1], sum(np.asarray(x) for x, _ in per_kernel)) < 3e-6


def training(how, dtype=None, images=True):
    function = plain(*how, conv_general_dilated, compute_dtype=dtype)

    def step(image, kernel, gradient):
        value, pullback = jax.vjp(function, image, kernel)
        return value, pullback(gradient)[not images :]

    return step


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_only_a_cpu_gets_matrix_products_for_a_convolution(platform, dtype):
    how = (2, 2), "VALID"
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in ((8, 20, 20, 16), (9, 9, 16, 8), (8, 6, 6, 8))
    ]
    exported = jax.export.export(jax.jit(training(how, dtype)), platforms=[platform])
    text = exported(*shapes).mlir_module()
    counts = text.count("stablehlo.convolution"), text.count("stablehlo.dot_general")
    assert counts[0] == (0 if platform == "cpu" else 3)
    assert (counts[1] == 0) == (platform != "cpu")


def test_the_unused_gradient_of_the_first_layer_s_images_is_not_computed():
    image_shape, kernel_shape, *how = SHAPES["first layer"]
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in (image_shape, kernel_shape, (2, 20, 20, 8))
    ]

    def products(images):
        step = jax.jit(training(how, images=images))
        return step.lower(*shapes).compile().as_text().count(" dot(")

    assert products(images=True) == 3
    assert products(images=False) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"rhs_dilation": (2, 2)},
        {"lhs_dilation": (1, 2), "padding": [(1, 1), (0, 2)]},
        {"feature_group_count": 2},
        {"batch_group_count": 2},
        {"preferred_element_type": jnp.float32},
        {"dimension_numbers": ("NCHW", "OIHW", "NCHW"), "padding": "SAME"},
        {"dimension_numbers": None, "padding": "SAME"},
        {"window_strides": (1, 1), "padding": "SAME_LOWER", "precision": "highest"},
    ],
)
def test_convolutions_without_a_fast_form_are_left_to_jax(key, options):
    image_key, kernel_key = jax.random.split(key)
    image = jax.random.normal(image_key, (16, 16, 16, 16))
    channels = 16 // options.get("feature_group_count", 1)
    shape = (5, 5, channels, 16)
    options = {
        "window_strides": (2, 2),
        "padding": "VALID",
        "dimension_numbers": LAYOUT,
    } | options
    if options["dimension_numbers"] != LAYOUT:
        shape = (16, 16, 5, 5)
    kernel = jax.random.normal(kernel_key, shape)
    expected = lax.conv_general_dilated(image, kernel, **options)
    actual = conv_general_dilated(image, kernel, **options)
    assert error(actual, expected) < 3e-6


@pytest.mark.parametrize("rank", [1, 3])
def test_other_ranks_are_left_to_jax(key, rank):
    image = jax.random.normal(key, (2, *[9] * rank, 16))
    kernel = jnp.ones((*[5] * rank, 16, 4))
    options = {"window_strides": [1] * rank, "padding": "VALID"}
    numbers = ("NHC", "HIO", "NHC") if rank == 1 else ("NHWDC", "HWDIO", "NHWDC")
    options["dimension_numbers"] = numbers
    expected = lax.conv_general_dilated(image, kernel, **options)
    np.testing.assert_array_equal(
        conv_general_dilated(image, kernel, **options), expected
    )


@pytest.mark.parametrize(("batch", "size"), [(0, 9), (2, 3)])
def test_no_image_and_no_output_are_as_in_jax(batch, size):
    image, kernel = jnp.ones((batch, size, size, 16)), jnp.ones((5, 5, 16, 4))
    gradient = jnp.zeros((batch, max(size - 4, 0), max(size - 4, 0), 4))
    actual, expected = (
        value_and_gradients(plain((1, 1), "VALID", function), image, kernel, gradient)
        for function in (conv_general_dilated, lax.conv_general_dilated)
    )
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_array_equal(a, e, strict=True)
    np.testing.assert_array_equal(actual[2], np.zeros_like(kernel))


def test_an_int_pads_both_ends(key):
    image, kernel, _ = draw(key, *SHAPES["one tile, stride 1"])
    expected = plain((1, 1), [(2, 2), (2, 2)], conv_general_dilated)(image, kernel)
    for padding in (2, (2, 2)):
        actual = plain((1, 1), padding, conv_general_dilated)(image, kernel)
        np.testing.assert_array_equal(actual, expected)


def test_another_compute_dtype_is_refused(key):
    image, kernel, _ = draw(key, *SHAPES["one tile, stride 1"])
    with pytest.raises(ValueError, match="compute_dtype must be float32 or bfloat16"):
        plain((1, 1), "VALID", conv_general_dilated, compute_dtype="int8")(
            image, kernel
        )


def test_wrong_shapes_and_types_get_jax_s_message():
    image, kernel = jnp.ones((1, 9, 9, 16)), jnp.ones((5, 5, 8, 4))
    with pytest.raises(ValueError, match="feature"):
        plain((1, 1), "VALID", conv_general_dilated)(image, kernel)
    with pytest.raises(TypeError, match="dtype"):
        plain((1, 1), "VALID", conv_general_dilated)(
            image, jnp.ones((5, 5, 16, 4), jnp.bfloat16)
        )


def test_float64_stays_float64(key, case):
    image_shape, kernel_shape, *how = case
    operands = draw(key, image_shape, kernel_shape, *how)
    expected = exact(*how, *operands)
    function = functools.partial(value_and_gradients, plain(*how, conv_general_dilated))
    with jax.enable_x64(True):
        operands = [jnp.asarray(np.asarray(x), jnp.float64) for x in operands]
        actual = jax.jit(function)(*operands)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == jnp.float64
        assert error(a, e) < 1e-14


@pytest.mark.numerics
def test_bfloat16_operands_give_bfloat16(key, case):
    image_shape, kernel_shape, *how = case
    operands = [
        x.astype(jnp.bfloat16) for x in draw(key, image_shape, kernel_shape, *how)
    ]
    function = functools.partial(value_and_gradients, plain(*how, conv_general_dilated))
    actual = jax.jit(function)(*operands)
    for a, e in zip(actual, exact(*how, *operands), strict=True):
        assert a.dtype == jnp.bfloat16
        assert error(a.astype(jnp.float32), e) < 5e-3


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.numerics
def test_a_prepared_kernel_gives_the_same_numbers(key, case, dtype):
    image_shape, kernel_shape, *how = case
    image, kernel, _ = draw(key, image_shape, kernel_shape, *how)
    prepared = prepare_kernel(kernel, image_shape, *how, compute_dtype=dtype)
    function = plain(*how, conv_general_dilated, compute_dtype=dtype)
    expected = jax.jit(function)(image, kernel)
    actual = jax.jit(convolve_prepared)(image, prepared)
    assert error(actual, expected) < (5e-6 if dtype is None else 5e-3)
    # It takes more images, too.
    more = np.concatenate([image] * 3)
    found = np.asarray(jax.jit(convolve_prepared)(more, prepared))
    assert error(found[: len(image)], actual) < 3e-6


def test_it_serves_a_flax_layer(key):
    image = jax.random.normal(key, (2, 3, 20, 20, 16))
    layer = nn.Conv(8, (9, 9), 2, "VALID", conv_general_dilated=conv_general_dilated)
    variables = layer.init(key, image)
    expected = nn.Conv(8, (9, 9), 2, "VALID").apply(variables, image)
    assert error(layer.apply(variables, image), expected) < 3e-6
