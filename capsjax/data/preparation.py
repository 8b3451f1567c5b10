"""How pictures become the arrays of a data set: described once, followed everywhere.

The reader of a data set makes the description, a run keeps it in ``dataset.json``, and
``predict`` and ``evaluate --data`` do what it says and no more.
"""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from PIL.Image import Image

# Which brightness of pixels of more than 8 bits is black, and which is white: two
# numbers; the full range of the file's type; or the darkest and brightest pixel of each
# image by itself.
Scale = tuple[float, float] | Literal["type", "own"]


class Drawn(NamedTuple):
    """Where the digits of a set lie that was made as MNIST's were.

    Attributes:
        frame: The height and width at which they are made, in pixels.
        extent: The longer side of what is drawn.
        is_centred: Whether the centre of mass is the middle of the frame in every image
            of the set.
    """

    frame: int
    extent: int
    is_centred: bool = False


DRAWN = {
    "mnist": Drawn(28, 20, is_centred=True),
    "multi_mnist": Drawn(36, 23),  # two digits, moved against each other: the median
    "expanded_mnist": Drawn(40, 20),
    "affine_mnist": Drawn(40, 20),
}
_AS_IS = "as_is"
LARGEST_SIDE = 2**16  # of an image that a network could be made for


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How a picture of any size becomes an image of a data set.

    Attributes:
        kind: ``as_is``: the middle of the picture is scaled to the height and width. A
            name of ``DRAWN``: what is drawn becomes light on dark, its longer side as
            long as the set's digits, its centre of mass the middle; but a picture that
            is made so already, as the set's own images are, stays as it is.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        channels: 1 for grey, 3 for colour, 4 for colour and transparency; 2 for a pair
            of grey pictures, left and right.
        scale: What is black and white in grey of more than 8 bits: two numbers; "type"
            for the full range of a file's type; "own" for each picture's own extremes.
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
        """Describes the images of the data set of a name, as ``load`` knows it."""
        if name in DRAWN:
            # Any pen becomes as bright as can be, whatever the depth of the file.
            return cls(name, *image_shape, scale="own")
        return cls(_AS_IS, *image_shape)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and number of channels."""
        return self.height, self.width, self.channels

    @property
    def is_drawn(self) -> bool:
        """Whether pictures become such as MNIST's digits are."""
        return self.kind in DRAWN

    def resized(self, image_shape: tuple[int, int, int]) -> "Preparation":
        """Describes the same, scaled to another height and width."""
        height, width, channels = image_shape
        return dataclasses.replace(self, height=height, width=width, channels=channels)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> "Preparation":
        """The preparation that ``to_json`` wrote.

        Raises:
            ValueError: If it is none.
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
        """Makes a picture an image of the data set.

        Args:
            picture: A file, or an image of 8 bits a channel. Of two channels, a file of
                two pages, or both pictures side by side, each as wide as the image is.
            invert: Of what is drawn, whether it is dark on light; None to see it by the
                brightness of the picture's edge.
            notes: Takes a line on what is in the file and is not read.

        Raises:
            ImageError: If it can't be read, or is not of such a form.
            UnclearGroundError: If ``invert`` is None and the edge is neither dark nor
                light.
            ValueError: If ``invert`` is given and nothing is drawn.
        """
        # Only where a picture is read, as it takes time to import.
        from capsjax.data.picture import make_image

        return make_image(self, picture, invert=invert, notes=notes)


def first_edition(name: str, image_shape: tuple[int, int, int]) -> Preparation:
    """How the images of a run were made whose ``dataset.json`` does not say it.

    Args:
        name: The configuration's name of the data set.
        image_shape: Height, width and number of channels of its images.
    """
    return dataclasses.replace(Preparation.of(name, image_shape), scale="own")


def _is_scale(scale: Any) -> bool:
    if not isinstance(scale, tuple):
        return scale in ("type", "own")
    are_numbers = all(type(n) in (int, float) and math.isfinite(n) for n in scale)
    return len(scale) == 2 and are_numbers and scale[0] < scale[1]
