"""Reads handwritten digits."""

__version__ = "1.0.0"
