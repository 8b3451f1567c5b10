"""What a trained network finds in images."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from capsjax.losses import PRESENT


class Prediction(NamedTuple):
    """The predictions of a network for some images.

    Attributes:
        label: The most active class of each image, an index into ``class_names``.
        activation: The length of every class capsule, or the probability of every
            class, from 0 to 1, by the run's ``activation_kind``.
        pose: The poses of the class capsules; None from a network that has none.

    Examples:
        >>> import numpy as np
        >>> from capsjax import load_pretrained
        >>> image = np.zeros((1, 28, 28, 1), np.uint8)
        >>> prediction = load_pretrained("mnist").predict(image)
        >>> prediction.activation.shape, prediction.pose.shape
        ((1, 10), (1, 10, 16))
    """

    label: Int[np.ndarray, " n"]
    activation: Float[np.ndarray, "n classes"]
    pose: Float[np.ndarray, "n classes d"] | None

    @property
    def length(self) -> Float[np.ndarray, "n classes"]:
        """Former name of ``activation``."""
        return self.activation

    @property
    def present(self) -> Bool[np.ndarray, "n classes"]:
        """True for each class whose activation is at least 0.5.

        This is the verdict where images show different numbers of classes. Where they
        show one, ``Run.present`` also looks at what the capsules draw.
        """
        return self.activation >= PRESENT


class Features(NamedTuple):
    """The capsules inside a network, for some images.

    Attributes:
        primary: The primary capsules of each image; None from a network that does not
            show them.
        pose: The poses of its class capsules; None from a network that has none.
        activation: Their lengths, probabilities or logits, as the network returns them.

    Examples:
        >>> import numpy as np
        >>> from capsjax import load_pretrained
        >>> image = np.zeros((1, 28, 28, 1), np.uint8)
        >>> features = load_pretrained("mnist").features(image)
        >>> features.pose.shape, features.activation.shape
        ((1, 10, 16), (1, 10))
    """

    primary: Float[np.ndarray, "n i c"] | None
    pose: Float[np.ndarray, "n classes d"] | None
    activation: Float[np.ndarray, "n classes"]
