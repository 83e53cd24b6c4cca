"""Load a model and its tokenizer: on this machine, or a part of it on each of several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..device.memory import check_memory
from ..distributed import launched
from .adapter import adapter_folder, apply_adapter
from .read import inspect, load_model, load_tokenizer, ready, resolve


def load(
    path_or_hf_repo: str | Path,
    revision: str | None = None,
    *,
    lazy: bool = False,
    adapter_path: str | Path | None = None,
    tune: bool = True,
) -> tuple[Any, Any]:
    """Load a dual-view model and its tokenizer.

    Args:
        path_or_hf_repo: "demo" (the bundled checkpoint), a folder, a Hub id such as
            "chiennv/Orthrus-Qwen3-1.7B", or the address of its page.
        revision: branch, tag or commit of a Hub id.
        lazy: leave weights on disk until they are first used.
        adapter_path: the folder of an adapter for the AR view, as `mlx_lm.lora` writes it.
        tune: whether kernels that `orthrus-mlx tune` has proven here are used.

    Started by `mlx.launch`, it cuts the model over all ranks. On rank 0 it returns as ever; on the
    others it runs what rank 0 says and ends the process when rank 0 leaves.

    Returns:
        (model, tokenizer): an `orthrus_mlx.model.Model` and mlx-lm's `TokenizerWrapper`.

    Raises:
        CheckpointError: saying what is wrong, where, and what to do.
    """
    adapter = None if adapter_path is None else adapter_folder(adapter_path)
    if launched():
        from ..distributed.together import load_together

        part = load_together(path_or_hf_repo, revision, lazy, adapter is not None)
        if part is not None:
            return part
    checkpoint = inspect(resolve(path_or_hf_repo, revision))
    if not lazy:
        check_memory(checkpoint.nbytes, str(path_or_hf_repo))
    model = load_model(checkpoint, lazy=lazy, tune=tune)
    if adapter is not None:
        apply_adapter(model, adapter)
        model = ready(model, lazy=lazy)
    model.tokenizer = load_tokenizer(checkpoint.folder)
    return model, model.tokenizer
