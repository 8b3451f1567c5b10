"""Errors of data sets."""


class DatasetError(ValueError):
    """A data set cannot be used; the message names it, the cause and the remedy."""


class NotFoundError(DatasetError):
    """A data set is not found in its place."""
