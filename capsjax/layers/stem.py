"""Small convolutions in front of capsules, as many as a value says."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from capsjax.bounds import ComputeType, Count, Widths
from capsjax.initializers import Start, initializer
from capsjax.kernels.pooling import max_pool
from capsjax.layers.convolution import Convolution
from capsjax.ops import require_axes
from capsjax.runtime.devices import AXIS

# The momentum of PyTorch, 1 - 0.1: fifty steps forget the start.
_MOMENTUM, _EPSILON = 0.9, 1e-5


@dataclasses.dataclass(frozen=True)
class Stem:
    r"""The sizes of a stack of convolutions, all of which keep the size of the image.

    .. math::
        x_0 = relu(K_0 * x + b_0), \quad
        z_l = norm(pool_l(x_{l-1})), \quad
        x_l = z_l + relu(K_l * z_l + b_l)

    Where the number of channels changes, ``relu(conv(norm(x)))`` changes it before the
    pooling. A last ``norm`` ends the stack.

    Attributes:
        features: Channels of each stage.
        pools: Side in pixels of the squares of which each stage keeps the largest
            pixel; 1 for no pooling.
        first_kernel: Height and width of the first kernel.
        kernel: Height and width of the other kernels.
        residual: True for ``z + relu(conv(z))`` in a stage, False for
            ``relu(conv(z))``.
        batch_norm: True for batch normalisation as ``norm``, False for no change.

    Examples:
        >>> from capsjax.layers import Stem
        >>> Stem(features=(64, 128), pools=(2, 2)).step  # Pixels between positions.
        4

    References:
        https://github.com/ttdoucet/mnist has the stack of the default sizes.
    """

    features: Widths = (128, 128, 256, 512)
    pools: Widths = (1, 2, 2, 2)
    first_kernel: Count = 5
    kernel: Count = 3
    residual: bool = True
    batch_norm: bool = True

    def check(self) -> None:
        """Compares the number of stages.

        Raises:
            ValueError: If ``pools`` has another number, or there is no stage.
        """
        if not len(self.features) == len(self.pools) > 0:
            raise ValueError(
                f"pools must have a number for each of the {len(self.features)} "
                f"stages of features, and at least one, got {self.pools}."
            )

    @property
    def step(self) -> int:
        """Pixels of the image from one position of the last map to the next."""
        product = 1
        for window in self.pools:
            product *= window
        return product


class ConvStem(nn.Module):
    """The convolutions of a :class:`capsjax.layers.Stem`, which has the equations.

    Attributes:
        stem: The sizes.
        compute_dtype: Type of the convolutions' operands; sums, and all else, are
            float32.
        kernel_init: Initializer of the kernels.
        bias_init: Initializer of the biases.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from capsjax.layers import ConvStem, Stem
        >>> layer = ConvStem(Stem(features=(8, 16), pools=(1, 2)))
        >>> image, key = jnp.zeros((2, 28, 28, 1)), jax.random.key(0)
        >>> features, _ = jax.eval_shape(layer.init_with_output, key, image)
        >>> features.shape
        (2, 14, 14, 16)
    """

    stem: Stem = Stem()
    compute_dtype: ComputeType = "float32"
    kernel_init: Start = "he_normal"
    bias_init: Start = "zeros"

    @nn.compact
    def __call__(
        self, image: Float[Array, "*batch h w c"], *, is_training: bool = False
    ) -> Float[Array, "*batch H W C"]:
        """Computes the last map of features.

        Args:
            image: The images.
            is_training: Normalises by the batch of all devices, and moves the averages
                that are used otherwise.

        Raises:
            TypeError: If the images are not floating-point numbers.
            ValueError: If an axis is missing, or the stem's numbers do not fit.
        """
        stem = self.stem
        stem.check()
        require_axes("image", image, "hwc")

        def norm(x, name):
            if not stem.batch_norm:
                return x
            return nn.BatchNorm(
                use_running_average=not is_training,
                momentum=_MOMENTUM,
                epsilon=_EPSILON,
                axis_name=AXIS,
                name=name,
            )(x)

        def conv(x, features, kernel, name):
            x = Convolution(
                features,
                kernel,
                compute_dtype=self.compute_dtype,
                kernel_init=self.kernel_init,
                padding="SAME",
                name=name,
            )(x)
            start = initializer(self.bias_init)
            bias = self.param(f"{name}_bias", start, (features,), jnp.float32)
            return nn.relu(x + jnp.broadcast_to(bias, x.shape))

        x = conv(image, stem.features[0], stem.first_kernel, "first")
        for n, (features, pool) in enumerate(
            zip(stem.features, stem.pools, strict=True)
        ):
            if features != x.shape[-1]:
                z = norm(x, f"widen{n}_norm")
                x = conv(z, features, stem.kernel, f"widen{n}")
            z = norm(max_pool(x, pool), f"stage{n}_norm")
            x = conv(z, features, stem.kernel, f"stage{n}")
            if stem.residual:
                x = z + x
        return norm(x, "last_norm")
