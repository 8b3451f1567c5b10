"""Stacks of capsule layers: vectors, or the matrix capsules of EM routing."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from capsjax.bounds import Count, Weight, Widths
from capsjax.initializers import (
    PRIMARY_LENGTH,
    SCALED,
    ScaledStart,
    before_squash,
    initializer,
    scaled_kernel,
    scaled_primary,
)
from capsjax.layers import ClassCaps, ConvCaps, Convolution, PrimaryCaps, PrimaryPoses
from capsjax.layers.conv_caps import Compete, Norm
from capsjax.layers.weights import Pose, start_length
from capsjax.models.network import UNKNOWN_SHAPE, require_data, require_shape
from capsjax.routings import Algorithm, DynamicRouting, Routed
from capsjax.routings.algorithm import require_algorithm
from capsjax.runtime.devices import AXIS
from capsjax.votes import Padding, num_windows


class StackedCapsNet(nn.Module):
    """A convolution, primary capsules, and a stack of routed layers of capsules.

    Layers of convolutional capsules, and then class capsules, use one algorithm. If it
    takes activations, the primary capsules have linear poses and activations of their
    own (matrix capsules), otherwise squashed poses. There is no decoder.

    With 64 features, 8 primary types and two layers of 16 types of 4x4 poses, this is
    the small network of Hinton, Sabour and Frosst: 68,754 parameters for five classes
    and images with two channels, the pairs of smallNORB. With 32 of all it has 317,194.

    Attributes:
        image_shape: Height, width and channels of an image. In a config the data set
            fills in this field and the next.
        num_classes: Number of class capsules.
        conv_features: Channels of the convolution.
        conv_kernel: Height and width of its kernel.
        conv_stride: Step of its window.
        primary_types: Kinds of primary capsules at each position.
        primary_kernel: Height and width of their window.
        primary_stride: Step of that window.
        dim: Components of every capsule.
        layer_types: Kinds of capsules of each layer of convolutional capsules.
        layer_kernels: Height and width of the windows of each of these layers.
        layer_strides: Steps of these windows.
        padding: ``SAME`` or ``VALID``, for these layers.
        drop_edge: True to leave out rows and columns that no window holds, with
            ``VALID``; False to refuse them.
        compete: ``window`` or ``image``: who competes for an input.
        norm: ``none``, ``layer`` or ``batch``: the norm after each of these layers.
        pose: ``vector`` or ``matrix``.
        share_positions: True to share the class capsules' matrices among all positions.
        coordinates: Factor of the positions that are added to the votes for classes; 0
            for none.
        routing: The routing algorithm, a value.
        conv_init: Initializer of the convolution's kernel.
        primary_init: Initializer of the primary capsules' kernel.
        weight_init: Initializer of the votes' matrices.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from capsjax import EMRouting
        >>> from capsjax.models import StackedCapsNet
        >>> network = StackedCapsNet((28, 28, 1), 10, dim=16, routing=EMRouting())
        >>> image, key = jnp.zeros((2, 28, 28, 1)), jax.random.key(0)
        >>> routed, _ = jax.eval_shape(network.init_with_output, key, image)
        >>> routed.pose.shape, routed.activation.shape
        ((2, 10, 16), (2, 10))

    References:
        Hinton, Sabour and Frosst 2018, section 4, *Matrix Capsules with EM Routing*,
        https://openreview.net/forum?id=HJWLfGWRb.
    """

    image_shape: tuple[int, int, int] = UNKNOWN_SHAPE
    num_classes: int = 0
    conv_features: Count = 64
    conv_kernel: Count = 5
    conv_stride: Count = 2
    primary_types: Count = 8
    primary_kernel: Count = 3
    primary_stride: Count = 1
    dim: Count = 8
    layer_types: Widths = (16,)
    layer_kernels: Widths = (3,)
    layer_strides: Widths = (2,)
    padding: Padding = "SAME"
    drop_edge: bool = False
    compete: Compete = "window"
    norm: Norm = "none"
    pose: Pose = "vector"
    share_positions: bool = False
    coordinates: Weight = 0.0
    routing: Algorithm = DynamicRouting(bias=0.1)
    conv_init: ScaledStart = SCALED
    primary_init: ScaledStart = SCALED
    weight_init: ScaledStart = SCALED

    @nn.compact
    def encode(
        self, image: Float[Array, "*batch h w c"], *, is_training: bool = False
    ) -> Routed:
        """Computes the class capsules of images with pixels from 0 to 1.

        Args:
            image: The images.
            is_training: True to normalise by the statistics of this batch, with
                ``norm="batch"``.

        Raises:
            ValueError: If an image is not of ``image_shape``, or a window does not fit.
        """
        require_data(self)
        require_algorithm(self.routing)
        self._require_windows()
        require_shape(image, self.image_shape)
        features = Convolution(
            self.conv_features,
            self.conv_kernel,
            self.conv_stride,
            kernel_init=initializer(self.conv_init, scaled_kernel),
            name="conv",
        )(image)
        bias = self.param(
            "conv_bias", nn.initializers.zeros, (self.conv_features,), jnp.float32
        )
        features = nn.relu(features + jnp.broadcast_to(bias, features.shape))
        capsules, activation = self._primary(features)
        input_length = PRIMARY_LENGTH
        for n, layer in enumerate(self._layers()):
            types = capsules.shape[-2]
            capsules, activation, _ = ConvCaps(
                *layer,
                self.padding,
                self.routing,
                self.compete,
                self.norm,
                pose=self.pose,
                drop_edge=self.drop_edge,
                axis_name=AXIS,
                weight_init=self.weight_init,
                input_length=input_length,
                name=f"conv_caps{n}",
            )(capsules, self._taken(activation), is_training=is_training)
            input_length = PRIMARY_LENGTH
            if self.norm == "none":
                num_inputs = layer[2] ** 2 * types
                input_length = start_length(self.routing, self.dim, num_inputs)
        return ClassCaps(
            self.num_classes,
            self.dim,
            self.routing,
            self.share_positions,
            self.coordinates,
            self.pose,
            weight_init=self.weight_init,
            input_length=input_length,
            name="class_caps",
        )(capsules, self._taken(activation))

    def __call__(
        self, image: Float[Array, "*batch h w c"], *, is_training: bool = False
    ) -> Routed:
        """Calls ``encode``."""
        return self.encode(image, is_training=is_training)

    def _primary(self, features: Array) -> tuple[Array, Array | None]:
        sizes = self.primary_types, self.dim, self.primary_kernel, self.primary_stride
        if self.routing.takes_activation:
            # Poses as long as squashed ones.
            scale = before_squash(PRIMARY_LENGTH) / PRIMARY_LENGTH
            start = initializer(self.primary_init, scaled_primary(self.dim, scale))
            return PrimaryPoses(*sizes, start, name="primary_caps")(features)
        layer = PrimaryCaps(*sizes, kernel_init=self.primary_init, name="primary_caps")
        return layer(features), None

    def _taken(self, activation: Array | None) -> Array | None:
        return activation if self.routing.takes_activation else None

    def _layers(self) -> list[tuple[int, int, int, int]]:
        """Returns types, components, kernel size and stride of each layer."""
        lists = self.layer_types, self.layer_kernels, self.layer_strides
        if len({*map(len, lists)}) > 1:
            raise ValueError(
                "layer_types, layer_kernels and layer_strides must have one number for "
                f"each layer, got {', '.join(map(str, lists))}."
            )
        return [(one[0], self.dim, *one[1:]) for one in zip(*lists, strict=True)]

    def _require_windows(self) -> None:
        """Raises if a window is larger than its map, with the sizes of all maps.

        Raises:
            ValueError: With the fields to change.
        """
        windows: list[tuple[str, int, int, Padding]] = [
            ("conv_kernel", self.conv_kernel, self.conv_stride, "VALID"),
            ("primary_kernel", self.primary_kernel, self.primary_stride, "VALID"),
        ]
        for n, (_, _, kernel, stride) in enumerate(self._layers()):
            windows.append((f"layer_kernels[{n}]", kernel, stride, self.padding))
        height, width, _ = self.image_shape
        sides, sizes = (height, width), [f"{height}x{width}"]
        for name, kernel, stride, padding in windows:
            if padding == "VALID" and min(sides) < kernel:
                raise ValueError(
                    f"{name}={kernel} is larger than the map below it; the maps of "
                    f"the image and of each layer are {', '.join(sizes)}. Choose "
                    "smaller kernels or strides, or larger images."
                )
            sides = tuple(num_windows(side, kernel, stride, padding) for side in sides)
            sizes.append("x".join(map(str, sides)))
