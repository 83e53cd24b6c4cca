"""Describe a checkpoint from its config and safetensors headers alone.

The headers also give the fingerprint by which this device's measurements are found.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..decoding.plan import RowCounts
from ..device.measured import MLX_VERSION, device_name
from ..device.probe import Probe, stored_probe
from ..distributed.cut import Share, possible_shares
from ..errors import CheckpointNotFoundError, NumericsError
from ..model import is_diffusion
from . import hub
from .config import ModelConfig, read_json
from .contents import Checkpoint, check, weight_names
from .read import inspect, locate
from .tensors import (
    DIFFUSION_FILE,
    DTYPE_NAMES,
    ITEM_SIZES,
    TensorInfo,
    add_tensor,
    packing,
    plain_shapes,
)


@dataclass(frozen=True)
class ViewInfo:
    """One part of the weights.

    Attributes:
        tensors: number of tensors; a packed one counts once.
        parameters: number of parameters, unpacked.
        bytes: size on disk and in memory.
        stored_as: parameters by storage type, largest first: a float type, or a quantization mode
            with its bits and group size.
    """

    tensors: int
    parameters: int
    bytes: int
    stored_as: dict[str, int]


@dataclass(frozen=True)
class ModelInfo:
    """A checkpoint described.

    Attributes:
        model: the name or path given.
        folder: its folder; None if it is only on the Hub.
        layout: "public" (both views in model*.safetensors) or "mlx" (the diffusion view apart).
        config: its shape.
        shared: weights that both views use.
        ar: weights of the autoregressive view alone.
        diffusion: weights of the diffusion view alone.
        kv_bytes_per_token: bytes of KV cache per token of context.
        has_tokenizer: whether there is a tokenizer.json.
        has_chat_template: whether the tokenizer knows a chat format.
        probe: what the probe of row counts found on this device; None if it was not run.
        shares: by number of machines, what each would hold, or why the model cannot be cut so.
    """

    model: str
    folder: Path | None
    layout: str
    config: ModelConfig
    shared: ViewInfo
    ar: ViewInfo
    diffusion: ViewInfo
    kv_bytes_per_token: int
    has_tokenizer: bool
    has_chat_template: bool
    probe: Probe | None
    shares: dict[int, Share | str]

    @property
    def views(self) -> dict[str, ViewInfo]:
        """The parts of the weights by name."""
        return {"shared": self.shared, "ar": self.ar, "diffusion": self.diffusion}

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(view.bytes for view in self.views.values())

    @property
    def parameters(self) -> int:
        """Number of parameters, unpacked."""
        return sum(view.parameters for view in self.views.values())

    @property
    def kv_bytes_at_limit(self) -> int:
        """Bytes of KV cache at the full context length."""
        return self.kv_bytes_per_token * self.config.max_position_embeddings

    @property
    def exact_rows(self) -> RowCounts | None:
        """The row counts of exact numerics on this device; None if there are none, or unknown."""
        try:
            return None if self.probe is None else self.probe.row_counts
        except NumericsError:
            return None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        config, probe = asdict(self.config), self.probe
        config.pop("raw")
        return {
            "model": self.model,
            "folder": None if self.folder is None else str(self.folder),
            "layout": self.layout,
            "config": config,
            "parameters": self.parameters,
            "views": {name: asdict(view) for name, view in self.views.items()},
            "memory": {
                "weights": self.weight_bytes,
                "kv_cache_per_token": self.kv_bytes_per_token,
                "kv_cache_at_context_limit": self.kv_bytes_at_limit,
                "total_at_context_limit": self.weight_bytes + self.kv_bytes_at_limit,
            },
            "ranks": {
                str(ranks): {"fault": held}
                if isinstance(held, str)
                else {"first": held.weights, "others": held.others}
                for ranks, held in self.shares.items()
            },
            "tokenizer": {"present": self.has_tokenizer, "chat_template": self.has_chat_template},
            "numerics": {
                "device": device_name(),
                "mlx": MLX_VERSION,
                "probe": probe and {**asdict(probe), "near_tie": probe.near_tie},
                "exact": None if probe is None else self.exact_rows is not None,
                "exact_rows": (rows := self.exact_rows)
                and {"verify": rows.verify, "fused": rows.fused},
            },
        }


def describe(path_or_hf_repo: str | Path, revision: str | None = None) -> ModelInfo:
    """Describe a checkpoint without reading its weights, nor downloading them.

    Args:
        path_or_hf_repo: "demo", a folder or a Hub id.
        revision: branch, tag or commit of a Hub id.

    Raises:
        CheckpointError: if it cannot be found, or is not a sound Orthrus checkpoint.
    """
    found = locate(path_or_hf_repo, revision)
    if isinstance(found, Path):
        return _describe_folder(str(path_or_hf_repo), found)
    try:
        repo = hub.describe(found.repo_id, found.revision)
    except CheckpointNotFoundError:
        cached = hub.cached(found.repo_id, found.revision)  # if not complete, the error says so
        if cached is None:
            raise
        return _describe_folder(found.repo_id, cached)
    return _describe_remote(found.repo_id, repo)


def _describe_folder(name: str, folder: Path) -> ModelInfo:
    names = frozenset(path.name for path in folder.iterdir()) if folder.is_dir() else frozenset()
    return _summarize(name, inspect(folder), folder, names)


def _describe_remote(name: str, repo: hub.Description) -> ModelInfo:
    tensors: dict[str, TensorInfo] = {}
    for file in weight_names(repo.folder, repo.names):
        for tensor, (dtype, shape) in hub.file_header(repo, file).items():
            add_tensor(tensors, tensor, TensorInfo(dtype, shape, Path(name, file)))
    return _summarize(name, check(repo.folder, tensors), None, repo.names)


def _summarize(
    name: str, checkpoint: Checkpoint, folder: Path | None, names: frozenset[str]
) -> ModelInfo:
    config = checkpoint.config
    views: dict[str, dict[str, tuple[int, ...]]] = {"shared": {}, "ar": {}, "diffusion": {}}
    for tensor, shape in plain_shapes(config).items():
        views[_view(tensor)][tensor] = shape
    # Keys and values have the type of the norms, which are never packed.
    cache_item = ITEM_SIZES[checkpoint.tensors["model.norm.weight"].dtype]
    per_layer = 2 * config.num_key_value_heads * config.head_dim * cache_item
    return ModelInfo(
        model=name,
        folder=folder,
        layout="mlx" if DIFFUSION_FILE in names else "public",
        config=config,
        shared=_view_info(views["shared"], checkpoint.tensors),
        ar=_view_info(views["ar"], checkpoint.tensors),
        diffusion=_view_info(views["diffusion"], checkpoint.tensors),
        kv_bytes_per_token=config.num_hidden_layers * per_layer,
        has_tokenizer="tokenizer.json" in names,
        has_chat_template=_has_chat_template(checkpoint.folder, names),
        probe=stored_probe(checkpoint),
        shares=possible_shares(config, checkpoint.tensors),
    )


def _view(tensor: str) -> str:
    """The part of the weights that a tensor belongs to; the views differ in attention weights."""
    if is_diffusion(tensor):
        return "diffusion"
    return "ar" if ".self_attn." in tensor else "shared"


def _view_info(shapes: dict[str, tuple[int, ...]], tensors: dict[str, TensorInfo]) -> ViewInfo:
    size, stored_as = 0, Counter[str]()
    for name, shape in shapes.items():
        path = name.removesuffix(".weight")
        parts = [tensors.get(f"{path}.{part}") for part in ("weight", "scales", "biases")]
        size += sum(part.nbytes for part in parts if part is not None)
        kind = DTYPE_NAMES[tensors[name].dtype]
        if f"{path}.scales" in tensors:
            pack = packing(path, shape[-1], tensors)
            kind = "{mode}, {bits} bits, groups of {group_size}".format(**pack)
        stored_as[kind] += prod(shape)
    return ViewInfo(len(shapes), stored_as.total(), size, dict(stored_as.most_common()))


def _has_chat_template(folder: Path, names: frozenset[str]) -> bool:
    if "chat_template.jinja" in names:
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(read_json(config).get("chat_template"))
