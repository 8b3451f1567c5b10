"""Errors of data sets."""


class DatasetError(ValueError):
    """A data set cannot be used; the message names it, the cause and the remedy.

    Examples:
        >>> from capsjax.data import DatasetError, load
        >>> try:
        ...     load("mnist", "tset")
        ... except DatasetError as error:
        ...     print(error)
        there is no split 'tset': it must be 'train' or 'test'
    """


class NotFoundError(DatasetError):
    """A data set is not found in its place.

    Examples:
        >>> from capsjax.data import NotFoundError, load
        >>> try:
        ...     load("/nowhere/digits.npz")
        ... except NotFoundError as error:
        ...     print(error)
        there is no /nowhere/digits.npz: correct the path
    """
