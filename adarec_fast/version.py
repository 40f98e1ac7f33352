"""The package's version, for whatever says by whom a file was made."""

__version__ = "0.1.0"
