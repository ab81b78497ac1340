"""Checkpoints of the published implementation: reading a stranger's file, its configuration text, the key table."""

from .convert import convert_file
from .errors import ConversionError

__all__ = ["ConversionError", "convert_file"]
