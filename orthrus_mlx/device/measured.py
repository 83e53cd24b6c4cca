"""What was measured on this device, kept on disk: what the probe found, and what passes cost."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx

from ..checkpoint.fingerprint import fingerprint_of
from ..errors import OrthrusError
from ..files import MEASURED_BYTES, read_bytes
from . import backend

# Part of every key. Raise it when the same checkpoint comes to run other kernels.
FORMAT = 15
DIGEST = "sha256"  # the field of a file that holds the digest of all others

MLX_VERSION: str = getattr(mx, "__version__", "unknown")  # which its stubs do not know

T = TypeVar("T")

# By file, what it held and what that was decoded to. It serves where the folder cannot be written,
# and gives the same object for the same content: much is cached by it.
_known: dict[Path, tuple[bytes, Any]] = {}


def load(kind: str, key: Any, decode: Callable[[Any], T]) -> T | None:
    """What was stored, or None where that is nothing, or nothing that can be used.

    Args:
        kind: of result, the first part of the file's name.
        key: what the result depends on; JSON values.
        decode: makes the result of what was encoded. It may raise what the wrong value causes.
    """
    file = place(kind, key)
    content, found = _known.get(file, (b"", None))
    try:
        stored = read_bytes(file, OrthrusError, MEASURED_BYTES)
    except OrthrusError:
        return found  # only this process knows it, if at all
    if stored != content:
        try:
            raw = json.loads(stored)
            if raw.pop(DIGEST) != _digest(raw):
                return None
            found = decode(raw)
        except Exception:  # damaged, or written by another version: to be measured again
            return None
        _known[file] = stored, found
    return found


def store(kind: str, key: Any, result: T, encode: Callable[[T], dict[str, Any]]) -> None:
    """Keep a result for `load`, at least in this process; `encode` makes a JSON object of it."""
    file = place(kind, key)
    raw = json.loads(json.dumps(encode(result)))
    content = json.dumps({**raw, DIGEST: _digest(raw)}).encode()
    _known[file] = content, result
    partial = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(file)
    except OSError:  # a folder that cannot be written only costs a new measurement
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def drop(kind: str, key: Any, *, here: bool) -> None:
    """Keep a result no longer; `here`: in this process neither."""
    file = place(kind, key)
    if here:
        _known.pop(file, None)
    with contextlib.suppress(OSError):
        file.unlink()


def _digest(raw: dict[str, Any]) -> str:
    """What tells a whole result from a damaged one, whose values can be anything."""
    return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()


def place(kind: str, key: Any) -> Path:
    """The file that a result is kept in."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return cache_folder() / f"{kind}-{name}.json"


def cache_folder() -> Path:
    """Where results measured on this machine are kept (`ORTHRUS_MLX_CACHE` overrides)."""
    if place := os.environ.get("ORTHRUS_MLX_CACHE"):
        return Path(os.path.expanduser(place))  # noqa: PTH111  (pathlib raises for no user's home)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orthrus-mlx"


def device_key(model: Any) -> dict[str, Any]:
    """Everything that decides which kernels run: `stock_key`, and those of ours that are in use.

    A `Checkpoint` has the key of the model that is loaded from it; see `fingerprint_of`.
    """
    kernels = getattr(model, "kernels", None)
    return stock_key(model) | ({"kernels": kernels} if kernels else {})


def stock_key(model: Any) -> dict[str, Any]:
    """What decides which of MLX's kernels run: shapes, packing, device, system, mlx version."""
    return {
        "format": FORMAT,
        "heads": [model.config.num_attention_heads, model.config.num_key_value_heads],
        # Of a model over several machines: ranks, what joins them, the devices of all.
        **({"several": list(several)} if (several := getattr(model, "several", ())) else {}),
        "limits": [model.config.block_size, model.config.max_position_embeddings],
        "weights": hashlib.sha256("\n".join(fingerprint_of(model)).encode()).hexdigest(),
        "device": device_name(),
        "system": [platform.system(), platform.release(), platform.machine()],
        "mlx": MLX_VERSION,
    }


def device_name() -> str:
    """The device that MLX computes on, by name."""
    return f"{backend.device_name()} ({mx.default_device().type.name})"
