"""Hugging Face checkpoint -> MLX checkpoint."""

from .pipeline import convert

__all__ = ["convert"]
