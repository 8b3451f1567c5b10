"""The convolution that is fast on every backend."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax import export
from jaxtyping import Array, Float

from capsjax.bounds import ComputeType, Count
from capsjax.initializers import (
    Start,
    initializer,
)
from capsjax.kernels.convolution import (
    conv_general_dilated,
    convolve_prepared,
    prepare_kernel,
)
from capsjax.ops import require_axes, require_unit_scale


class Convolution(nn.Module):
    r"""A convolution without a bias, fast on every backend.

    .. math::
        y_{hwn} = \sum_{abc} K_{abcn} \, x_{sh+a, \, sw+b, \, c}

    for the stride ``s``; with ``padding="SAME"`` the image has zeros around it.

    Uses the variable ``prepared/kernel`` without another transformation, if
    :func:`capsjax.models.prepare` made it.

    Attributes:
        features: Output channels.
        kernel_size: Height and width of the kernel.
        stride: Step of the window.
        compute_dtype: Type of the product's operands; sums and result are float32.
        kernel_init: Initializer of the kernel.
        padding: ``VALID`` for none; ``SAME`` for zeros around, so that a stride of 1
            keeps the size.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from capsjax.layers import Convolution
        >>> layer = Convolution(features=4, kernel_size=3, stride=2)
        >>> image, key = jnp.ones((2, 9, 9, 1)), jax.random.key(0)
        >>> features, variables = layer.init_with_output(key, image)
        >>> features.shape, variables["params"]["kernel"].shape
        ((2, 4, 4, 4), (3, 3, 1, 4))
    """

    features: Count
    kernel_size: Count
    stride: Count = 1
    compute_dtype: ComputeType = "float32"
    kernel_init: Start = "he_normal"
    padding: str = "VALID"

    @nn.compact
    def __call__(
        self, image: Float[Array, "*batch h w c"]
    ) -> Float[Array, "*batch H W C"]:
        """Convolves images, channels last, in the type of the kernel.

        Raises:
            TypeError: If the images are not floating-point numbers.
            ValueError: If an axis is missing, or an image is smaller than the kernel.
        """
        require_unit_scale("image", image)
        require_axes("image", image, "hwc")
        sides = [n for n in image.shape[-3:-1] if not export.is_symbolic_dim(n)]
        if self.padding == "VALID" and any(n < self.kernel_size for n in sides):
            raise ValueError(
                f"image must be at least as large as the kernel, {self.kernel_size}x"
                f"{self.kernel_size}, got shape {image.shape}."
            )
        *batch, height, width, channels = image.shape
        shape = (self.kernel_size, self.kernel_size, channels, self.features)
        kernel = self.param("kernel", initializer(self.kernel_init), shape, jnp.float32)
        # With JAX_ENABLE_X64 even jnp.zeros has 64 bits.
        image = jnp.asarray(image, kernel.dtype)
        image = image.reshape(math.prod(batch), height, width, channels)
        strides = (self.stride, self.stride)
        if self.is_mutable_collection("prepared") and not self.is_initializing():
            prepared = prepare_kernel(
                kernel,
                image.shape,
                strides,
                self.padding,
                compute_dtype=self.compute_dtype,
            )
            self.put_variable("prepared", "kernel", prepared)
        if self.has_variable("prepared", "kernel"):
            result = convolve_prepared(image, self.get_variable("prepared", "kernel"))
        else:
            result = conv_general_dilated(
                image,
                kernel,
                strides,
                self.padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                compute_dtype=self.compute_dtype,
            )
        return result.reshape(*batch, *result.shape[1:])
