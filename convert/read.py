"""Read the source one tensor at a time, cast it and pack it."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from ..checkpoint.tensors import MX_DTYPES
from ..errors import ConversionError, IncompleteCheckpointError, brief
from .plan import Step


class SourceReader:
    """Read the arrays that each step writes; none is kept."""

    def __init__(self) -> None:
        self._files: dict[Path, dict[str, mx.array]] = {}

    def read(self, step: Step) -> list[mx.array]:
        """The arrays of `step.outputs`, evaluated.

        Raises:
            IncompleteCheckpointError: if the file cannot be read.
            ConversionError: if a value does not fit the type, or the tensor cannot be packed.
        """
        mx.clear_cache()  # buffers of the previous step
        file = step.source.file
        try:
            if file not in self._files:
                content = mx.load(str(file))  # headers only: each array is read when evaluated
                assert isinstance(content, dict)
                self._files[file] = content
            source = self._files[file].pop(step.name)
            mx.eval(source)
        except (RuntimeError, KeyError, OSError) as e:
            raise IncompleteCheckpointError(
                f"{step.name} cannot be read from {file}: {brief(e)}. Download it again."
            ) from e
        value = source.astype(MX_DTYPES[step.dtype])
        if step.dtype == "F16" and not mx.all(mx.isfinite(value) | ~mx.isfinite(source)):
            raise ConversionError(
                f"{step.name} holds values beyond float16's range (65504). Use bfloat16."
            )
        arrays = [value] if step.packing is None else _pack(value, step)
        mx.eval(arrays)
        return arrays


def _pack(value: mx.array, step: Step) -> list[mx.array]:
    assert step.packing is not None
    group_size, bits, mode = step.packing.group_size, step.packing.bits, step.packing.mode
    try:
        return list(mx.quantize(value, group_size=group_size, bits=bits, mode=mode))
    except (ValueError, RuntimeError) as e:
        raise ConversionError(
            f"{step.name} {list(value.shape)} cannot be packed ({mode}, {bits} bits, groups of "
            f"{group_size}): {brief(e)}."
        ) from e
