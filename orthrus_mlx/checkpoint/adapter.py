"""Adapters of mlx-lm (LoRA, DoRA, or full weights) on the AR view.

The diffusion view stays as it is, so it guesses the adapted model's tokens less often; what is
written is the adapted model's all the same.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mlx.utils import tree_unflatten

from ..errors import CheckpointError, IncompleteCheckpointError, brief
from ..files import check_tensor_file, expanded, open_part
from .plain import plain_qwen3

FILES = ("adapter_config.json", "adapters.safetensors")


def adapter_folder(path: str | Path) -> Path:
    """The folder of an adapter, as mlx-lm's `lora` writes it.

    Raises:
        IncompleteCheckpointError: if a file of it is missing.
    """
    folder = expanded(path, IncompleteCheckpointError)
    for name in FILES:
        if not (folder / name).is_file():
            raise IncompleteCheckpointError(
                f"{folder} holds no {name}. An adapter is a folder with {' and '.join(FILES)}, as "
                "`mlx_lm.lora` writes it."
            )
    open_part(folder / FILES[0], CheckpointError).close()
    check_tensor_file(folder / FILES[1], CheckpointError)
    return folder


def apply_adapter(model: Any, folder: Path) -> None:
    """Put the adapter in `folder` on a model, in place.

    Raises:
        CheckpointError: if it was made for another model.
    """
    from mlx_lm.tuner.dora import DoRAEmbedding, DoRALinear
    from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear
    from mlx_lm.tuner.utils import load_adapters

    from ..model import own_random_state

    # mlx-lm sees a plain Qwen3 of the AR view's modules, so that no other view is adapted.
    plain = plain_qwen3(model)
    try:
        with own_random_state():
            load_adapters(plain, os.fspath(folder))
    # Whatever mlx-lm and MLX raise on files that they did not expect.
    except Exception as e:
        problem = " ".join(str(e).split()) or brief(e)
        raise CheckpointError(f"The adapter in {folder} does not fit this model: {problem}") from e
    kinds = (LoRALinear, DoRALinear, LoRAEmbedding, DoRAEmbedding)
    adapted = [
        (name, module) for name, module in plain.named_modules() if isinstance(module, kinds)
    ]
    if adapted:
        model.update_modules(tree_unflatten(adapted))
    model.eval()
