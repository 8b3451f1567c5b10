"""The section ``data`` of a config: the source of the images."""

import dataclasses
from typing import Annotated, Literal

from capsjax.bounds import Allowed, Natural, Size
from capsjax.data import BY_CLASS, Dataset, Generated, loading
from capsjax.data.preparation import Preparation


@dataclasses.dataclass
class Data:
    """The source of the images, and the choice among them.

    A class of your own overrides ``load``, and ``has_validation`` if it has validation
    images. Its fields stand in the config, like these.

    Attributes:
        name: ``mnist``, ``multi_mnist``, ``expanded_mnist``, ``image_folder``, a folder
            of IDX archives, a file of arrays ``FILE.npz``, a table of image files
            ``FILE.csv``, or a name that TFDS knows.
        path: The folder of an ``image_folder``, with one subfolder for each class.
        image_size: Height and width to scale images to; 0 leaves them.
        num_validation: Number of training images kept for validation, a share from each
            class; 0 trains on all, -1 keeps a tenth. Any value but 0 uses the data
            set's own validation split, if there is one.
        num_train: Number of the other images to train on, drawn at random, a share from
            each class; 0 for all of them.
        crop: Side in pixels of the squares that the network sees, at a random place in
            training and in the middle otherwise; 0 for whole images.
        class_weights: ``none``: every image counts alike. ``balanced``: the loss of an
            image counts ``N / (K N_class)``, for ``N`` training images of ``K``
            classes, ``N_class`` of them in its class. Every class then counts alike in
            training and in the validation loss that chooses the best checkpoint. Where
            images show several classes, the class's term of the loss of the class
            capsules counts ``N / (2 N_present)`` in the ``N_present`` images that show
            the class, and ``N / (2 N_absent)`` in the others; 1 if either number is 0.
            The other metrics, and the whole test, count every image alike.
        skip_bad_files: True to skip image files that can't be read.
        validation_choice: ``drawn``: the images kept for validation are drawn at
            random. ``last``: they are the last ones, 50,000 to 59,999 of MNIST's if
            ``num_validation`` is 10,000, which others keep, too.

    Examples:
        >>> from capsjax.config import Config, Data
        >>> config = Config(data=Data(name="cifar10", num_validation=-1, crop=28))
        >>> config.data.name, config.data.image_size
        ('cifar10', 0)
    """

    name: Annotated[str, Allowed("the name of a data set or a folder", bool)] = "mnist"
    path: str = ""
    image_size: Size = 0
    num_validation: Annotated[
        int, Allowed("at least 0, or -1", lambda number: number >= -1)
    ] = 5000
    num_train: Natural = 0
    crop: Natural = 0
    class_weights: Literal["none", "balanced"] = "none"
    skip_bad_files: bool = False
    validation_choice: Literal["drawn", "last"] = "drawn"

    @property
    def has_validation(self) -> bool:
        """True if the data set has a validation split."""
        is_own = type(self).load is not Data.load
        return not is_own and loading.has_validation(self.name, self.path)

    def load(
        self,
        split: str,
        *,
        max_bytes: int,
        split_rule: str = BY_CLASS,
        preparation: Preparation | None = None,
    ) -> Dataset | Generated:
        """Loads one split of the data set.

        Args:
            split: ``train``, ``test``, or ``validation`` if ``has_validation``.
            max_bytes: The most memory that the images may take.
            split_rule: Name of the rule that divides the images.
            preparation: How image files become images; None for the training images.

        Raises:
            DatasetError: If the images can't be found or read.
        """
        return loading.load(
            self.name,
            split,
            path=self.path,
            image_size=self.image_size,
            max_bytes=max_bytes,
            split_rule=split_rule,
            preparation=preparation,
            skip_bad_files=self.skip_bad_files,
        )
