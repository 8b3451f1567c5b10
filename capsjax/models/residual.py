"""A residual network for photographs, with class capsules on top."""

import functools
from typing import Annotated

import flax.linen as nn
from jaxtyping import Array, Float

from capsjax.bounds import ComputeType, Count, Widths, between
from capsjax.layers import CapsuleHead, Convolution
from capsjax.models.network import UNKNOWN_SHAPE, require_data, require_shape
from capsjax.routings import Algorithm, DynamicRouting, Routed
from capsjax.runtime.devices import AXIS


class ResidualCapsNet(nn.Module):
    """Class capsules on a small residual network, for photographs of any size.

    First comes a convolution of large stride, then stages of residual blocks. Each
    stage but the first halves height and width. The features of the last stage become
    primary capsules, which vote for the class capsules. The network draws no images: a
    decoder of photographs would hold most of the weights.

    Attributes:
        image_shape: Height, width and channels of an image. In a config the data set
            fills in this field and the next.
        num_classes: Number of class capsules.
        widths: Channels of each stage.
        num_blocks: Residual blocks of each stage.
        stem_kernel: Height and width of the first convolution's kernel.
        stem_stride: Step of the first convolution: 4 for photographs, 1 for images as
            small as digits.
        primary_types: Kinds of primary capsules at each position of the last stage.
        primary_dim: Components of a primary capsule.
        share_positions: True to share the votes' matrices of a type among all
            positions: the weights then do not grow with the image.
        class_dim: Components of a class capsule.
        routing: The routing algorithm, a value.
        compute_dtype: ``float32``, or ``bfloat16`` for the operands of large products.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from capsjax.models import ResidualCapsNet
        >>> network = ResidualCapsNet((64, 64, 3), 5, widths=(8, 16))
        >>> image, key = jnp.zeros((2, 64, 64, 3)), jax.random.key(0)
        >>> routed, _ = jax.eval_shape(network.init_with_output, key, image)
        >>> routed.activation.shape
        (2, 5)

    References:
        He, Zhang, Ren and Sun 2016, section 3.3, https://arxiv.org/abs/1512.03385, for
        the blocks.
    """

    image_shape: tuple[int, int, int] = UNKNOWN_SHAPE
    num_classes: int = 0
    widths: Widths = (32, 64, 128, 256)
    num_blocks: Annotated[int, between(1, 100)] = 1
    stem_kernel: Count = 7
    stem_stride: Count = 4
    primary_types: Count = 32
    primary_dim: Count = 8
    share_positions: bool = True
    class_dim: Count = 16
    routing: Algorithm = DynamicRouting()
    compute_dtype: ComputeType = "float32"

    @nn.compact
    def encode(
        self, image: Float[Array, "*batch h w c"], *, is_training: bool = False
    ) -> Routed:
        """Computes the class capsules of images with pixels from 0 to 1.

        Args:
            image: The images.
            is_training: Normalises by the statistics of the batch of all devices, and
                moves their averages, which otherwise normalise.

        Raises:
            ValueError: If an image is not of ``image_shape``, or ``widths`` is empty.
        """
        require_data(self)
        if not self.widths:
            raise ValueError("widths must have a number for each stage, got ().")
        require_shape(image, self.image_shape)
        convolve = functools.partial(
            Convolution, compute_dtype=self.compute_dtype, padding="SAME"
        )
        # Few photographs make few steps, in which averages must follow.
        norm = functools.partial(
            nn.BatchNorm, not is_training, momentum=0.9, axis_name=AXIS
        )
        hidden = convolve(self.widths[0], self.stem_kernel, self.stem_stride)(image)
        hidden = nn.relu(norm()(hidden))
        for stage, width in enumerate(self.widths):
            for block in range(self.num_blocks):
                stride = 2 if stage and not block else 1
                branch = nn.relu(norm()(convolve(width, 3, stride)(hidden)))
                # A block starts as its shortcut.
                scale = nn.initializers.zeros
                branch = norm(scale_init=scale)(convolve(width, 3)(branch))
                if stride > 1 or width != hidden.shape[-1]:
                    hidden = norm()(convolve(width, 1, stride)(hidden))
                hidden = nn.relu(hidden + branch)
        return CapsuleHead(
            self.num_classes,
            self.class_dim,
            self.routing,
            primary_types=self.primary_types,
            primary_dim=self.primary_dim,
            share_positions=self.share_positions,
        )(hidden)

    def __call__(
        self, image: Float[Array, "*batch h w c"], *, is_training: bool = False
    ) -> Routed:
        """Calls ``encode``."""
        return self.encode(image, is_training=is_training)
