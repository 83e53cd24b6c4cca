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

# Part of every key. Raise it when the same checkpoint comes to run other kernels.
FORMAT = 13

MLX_VERSION: str = getattr(mx, "__version__", "unknown")  # which its stubs do not know

T = TypeVar("T")

# By file, what it held and what that was decoded to. It serves where the folder cannot be written,
# and gives the same object for the same content: much is cached by it.
_known: dict[Path, tuple[str, Any]] = {}


def load(kind: str, key: Any, decode: Callable[[Any], T]) -> T | None:
    """What was stored, or None where that is nothing, or nothing that can be used.

    Args:
        kind: of result, the first part of the file's name.
        key: what the result depends on; JSON values.
        decode: makes the result of a JSON value. It may raise what the wrong value causes.
    """
    file = _file(kind, key)
    text, found = _known.get(file, ("", None))
    try:
        stored = file.read_text(encoding="utf-8")
        if stored != text:
            found = decode(json.loads(stored))
            _known[file] = stored, found
    except OSError:
        pass  # only this process knows it, if at all
    except (ValueError, LookupError, TypeError, AttributeError):
        return None  # damaged, or written by another version: to be measured again
    return found


def store(kind: str, key: Any, result: T, encode: Callable[[T], Any]) -> None:
    """Keep a result for `load`, at least in this process; `encode` makes JSON values of it."""
    file = _file(kind, key)
    text = json.dumps(encode(result))
    _known[file] = text, result
    partial = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    except OSError:  # a folder that cannot be written only costs a new measurement
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _file(kind: str, key: Any) -> Path:
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return cache_folder() / f"{kind}-{name}.json"


def cache_folder() -> Path:
    """Where results measured on this machine are kept (`ORTHRUS_MLX_CACHE` overrides)."""
    if place := os.environ.get("ORTHRUS_MLX_CACHE"):
        return Path(place)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orthrus-mlx"


def device_key(model: Any) -> dict[str, Any]:
    """Everything that decides which kernels run: shapes, packing, device, system, mlx version.

    A `Checkpoint` has the key of the model that is loaded from it; see `fingerprint_of`.
    """
    return {
        "format": FORMAT,
        "heads": [model.config.num_attention_heads, model.config.num_key_value_heads],
        "limits": [model.config.block_size, model.config.max_position_embeddings],
        "weights": list(fingerprint_of(model)),
        "device": device_name(),
        "system": [platform.system(), platform.release(), platform.machine()],
        "mlx": MLX_VERSION,
    }


def device_name() -> str:
    """The device that MLX computes on, by name."""
    device = mx.default_device()
    info: dict[str, Any] = mx.device_info(device) if hasattr(mx, "device_info") else {}
    name = info.get("device_name") or platform.processor()
    return f"{name} ({device.type.name})"
