"""The error of all formats."""


class ExportError(ValueError):
    """A network can't be exported; the message names what is in the way."""
