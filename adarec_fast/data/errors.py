"""The one error type of everything that reads, checks or fetches data."""

from __future__ import annotations


class DataError(ValueError):
    """A problem with data: the message names the file and line (or row) where there is one,
    the value that is wrong, and what would be right.

    Example:
        >>> af.load({"u1": ["sku-1"]})
        Traceback (most recent call last):
        ...
        adarec_fast.data.errors.DataError: ...
    """


class EmptyFile(DataError):
    """A file with nothing in it, which does not matter beside others that have something."""
