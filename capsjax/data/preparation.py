"""Describes once how pictures become the arrays of a data set, for use everywhere.

The reader of a data set makes the description, a run keeps it in ``dataset.json``, and
``predict`` and ``evaluate --data`` follow it exactly.
"""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from PIL.Image import Image

# The black and the white of pixels with more than 8 bits: two numbers; the full range
# of the file's type; or each image's own darkest and brightest pixel.
Scale = tuple[float, float] | Literal["type", "own"]


class Drawn(NamedTuple):
    """The place of the digits in a set that was made as MNIST was.

    Attributes:
        frame: Height and width at which images are made, in pixels.
        extent: The longer side of the drawing.
        is_centred: Whether the centre of mass is the middle of the frame in every image
            of the set.
    """

    frame: int
    extent: int
    is_centred: bool = False


DRAWN = {
    "mnist": Drawn(28, 20, is_centred=True),
    "multi_mnist": Drawn(36, 23),  # The median: two digits are shifted apart.
    "expanded_mnist": Drawn(40, 20),
    "affine_mnist": Drawn(40, 20),
    "affine_mnist_28": Drawn(28, 20),
}
_AS_IS = "as_is"
LARGEST_SIDE = 2**16  # No network could take larger images.


@dataclasses.dataclass(frozen=True)
class Preparation:
    """The way from a picture of any size to an image of a data set.

    Attributes:
        kind: ``as_is``: the middle of the picture is scaled to the height and width. A
            name in ``DRAWN``: the drawing becomes light on dark, its longer side as
            long as the set's digits, its centre of mass the middle. A picture that is
            already made so, like the set's own images, stays unchanged.
        height: The image's height in pixels.
        width: The image's width in pixels.
        channels: 1 for grey, 3 for colour, 4 for colour and transparency; 2 for a pair
            of grey pictures, left and right.
        scale: Black and white of grey with more than 8 bits: two numbers; "type" for
            the full range of a file's type; "own" for each picture's own extremes.
        orientation: "exif": a photo is turned as its camera was held.

    Raises:
        ValueError: If a field has a value that is not allowed.
    """

    kind: str
    height: int
    width: int
    channels: int
    scale: Scale = "type"
    orientation: str = "exif"

    def __post_init__(self):
        if self.kind != _AS_IS and self.kind not in DRAWN:
            raise ValueError(
                f"kind must be {_AS_IS}, {', '.join(DRAWN)}: {self.kind!r}"
            )
        if self.kind in DRAWN and self.channels != 1:
            raise ValueError(f"channels of {self.kind} must be 1: {self.channels!r}")
        for name in ("height", "width", "channels"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= LARGEST_SIDE:
                raise ValueError(f"{name} must be from 1 to {LARGEST_SIDE}: {value!r}")
        if not _is_scale(self.scale):
            raise ValueError(f"scale must be type, own or two numbers: {self.scale!r}")
        if self.orientation != "exif":
            raise ValueError(f"orientation must be exif: {self.orientation!r}")

    @classmethod
    def of(cls, name: str, image_shape: tuple[int, int, int]) -> "Preparation":
        """Describes the images of a data set, named as in ``load``."""
        if name in DRAWN:
            # Every pen becomes as bright as possible at any depth of the file.
            return cls(name, *image_shape, scale="own")
        return cls(_AS_IS, *image_shape)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and number of channels."""
        return self.height, self.width, self.channels

    @property
    def is_drawn(self) -> bool:
        """True if pictures become like MNIST's digits."""
        return self.kind in DRAWN

    def resized(self, image_shape: tuple[int, int, int]) -> "Preparation":
        """Describes the same, scaled to another height and width."""
        height, width, channels = image_shape
        return dataclasses.replace(self, height=height, width=width, channels=channels)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> "Preparation":
        """Reads the preparation that ``to_json`` wrote.

        Raises:
            ValueError: If the value is no preparation.
        """
        if not isinstance(value, dict):
            raise ValueError(f"a preparation must be an object: {value!r}")
        scale = value.get("scale")
        if isinstance(scale, list):
            value = {**value, "scale": tuple(scale)}
        try:
            return cls(**value)
        except TypeError as error:
            raise ValueError(f"a preparation has other fields: {error}") from error

    def apply(
        self,
        picture: "str | Path | Image",
        *,
        invert: bool | None = None,
        notes: list[str] | None = None,
    ) -> UInt8[np.ndarray, "h w c"]:
        """Turns a picture into an image of the data set.

        Args:
            picture: A file, or an image with 8 bits a channel. Pairs are a file with
                two pages, or both pictures side by side, each as wide as the image.
            invert: Whether a drawing is dark on light; None to decide by the brightness
                of the picture's edge.
            notes: Takes a line on each part of the file that is not read.

        Raises:
            ImageError: If the picture can't be read, or is no pair for two channels.
            UnclearGroundError: If ``invert`` is None and the edge is neither dark nor
                light.
            ValueError: If ``invert`` is given and the set has no drawings.
        """
        # Imported here, as it takes time.
        from capsjax.data.picture import make_image

        return make_image(self, picture, invert=invert, notes=notes)


def first_edition(name: str, image_shape: tuple[int, int, int]) -> Preparation:
    """Returns the preparation of a run whose ``dataset.json`` has none.

    Args:
        name: Name of the data set in the configuration.
        image_shape: Height, width and number of channels of its images.
    """
    return dataclasses.replace(Preparation.of(name, image_shape), scale="own")


def _is_scale(scale: Any) -> bool:
    if not isinstance(scale, tuple):
        return scale in ("type", "own")
    are_numbers = all(type(n) in (int, float) and math.isfinite(n) for n in scale)
    return len(scale) == 2 and are_numbers and scale[0] < scale[1]
