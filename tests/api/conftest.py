"""A tokenizer for the tests of the text layer."""

from typing import Any

import pytest

from .texts import byte_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """mlx-lm's wrapper around a tokenizer of single bytes."""
    return byte_tokenizer(tmp_path_factory.mktemp("bytes"))
