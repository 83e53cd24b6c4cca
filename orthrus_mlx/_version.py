"""The version of this package, known where it is not installed too."""

__version__ = "0.2.0"
