"""Small random checkpoints that can be cut into 2, 3 and 4."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tests import helpers
from tests.lossless.random_models import favour_one_token

DEMO = Path(__file__).parents[2] / "orthrus_mlx" / "demo"  # whose tokenizer they have
SHAPE: dict[str, Any] = {
    "num_key_value_heads": 12,
    "num_attention_heads": 12,
    "head_dim": 32,
    "hidden_size": 128,
    "intermediate_size": 768,
    "num_hidden_layers": 2,
    "layer_types": None,
    "max_window_layers": 2,
    "vocab_size": 1024,
    "block_size": 8,
    "tie_word_embeddings": False,
}


def checkpoint(folder: Path, dtype: mx.Dtype = mx.float32, **shape: Any) -> Path:
    """A checkpoint under which some drafts are accepted and some are not."""
    config = helpers.random_config(1, **(SHAPE | shape))
    weights = favour_one_token(config, helpers.random_weights(config), 18.0)
    weights = {name: a.astype(dtype) for name, a in weights.items()}
    return helpers.write_checkpoint(folder, config, weights, tokenizer_from=DEMO)


@pytest.fixture(scope="session")
def random12(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve heads, float32."""
    return checkpoint(tmp_path_factory.mktemp("random12"))
