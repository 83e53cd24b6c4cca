"""Write one safetensors file tensor by tensor, holding no more than one in memory.

`mx.save_safetensors` takes a whole file's tensors at once and does not say why a write failed;
here the header is written first, from a plan, and an `OSError` stays an `OSError`.
"""

from __future__ import annotations

import contextlib
import json
import os
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import mlx.core as mx

from ..checkpoint.tensors import ITEM_SIZES, MX_DTYPES


class TensorSpec(NamedTuple):
    """Name, safetensors dtype and shape of a tensor to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return prod(self.shape) * ITEM_SIZES[self.dtype]


class SafetensorsWriter:
    """A safetensors file whose tensors, known in advance, arrive one by one in any order."""

    def __init__(self, path: Path, specs: list[TensorSpec]):
        self._pending = {spec.name: spec for spec in specs}
        # Wide types first, as the safetensors library does it, so that each is aligned.
        ordered = sorted(specs, key=lambda spec: -ITEM_SIZES[spec.dtype])
        header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
        offsets, end = {}, 0
        for spec in ordered:
            offsets[spec.name], end = end, end + spec.nbytes
            header[spec.name] = {
                "dtype": spec.dtype,
                "shape": spec.shape,
                "data_offsets": [offsets[spec.name], end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        start = 8 + len(text)
        self._places = {name: start + offset for name, offset in offsets.items()}
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, array: mx.array) -> None:
        """Write the data of tensor `name`.

        Raises:
            KeyError: for a tensor that was not planned, or is written already.
            ValueError: for another type or shape than planned.
            OSError: if the file system refuses.
        """
        spec = self._pending[name]
        if array.dtype != MX_DTYPES[spec.dtype] or tuple(array.shape) != spec.shape:
            raise ValueError(
                f"{name} came out as {array.dtype} {list(array.shape)}, planned was {spec}"
            )
        data: Any = mx.contiguous(array).view(mx.uint8)
        mx.eval(data)
        self._file.seek(self._places[name])
        self._file.write(memoryview(data))
        del self._pending[name]

    def close(self) -> None:
        """Force the file to disk.

        Raises:
            ValueError: if a tensor is missing.
            OSError: if the file system refuses.
        """
        if self._pending:
            raise ValueError(f"not written: {', '.join(self._pending)}")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._abandon()

    def _abandon(self) -> None:
        with contextlib.suppress(OSError):  # what is still buffered cannot be written either
            self._file.close()
