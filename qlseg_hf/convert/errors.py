"""The error of the converter."""


class ConversionError(ValueError):
    """A sentence for the user: what is wrong with the checkpoint or the arguments."""


__all__ = ["ConversionError"]
