"""Runs the sources of our CUDA kernels on a CPU, slowly: in place of `mx.fast.cuda_kernel`."""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

COMPILER = shutil.which("g++")
TYPES = {mx.bfloat16: "__nv_bfloat16", mx.float32: "float", mx.int32: "int", mx.uint32: "uint32_t"}
WAITS = re.compile(r"asm volatile\(.*?\);\n")  # for copies: here nothing is under way
SHARED = "extern __shared__ uint4 shared[];"


def kernel(
    name: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    source: str,
    header: str = "",
    shared_memory: int = 0,
    strided: tuple[str, ...] = (),
) -> Callable[..., list[mx.array]]:
    """As `orthrus_mlx.cuda.kernels.kernel`."""
    body = WAITS.sub(";\n", source).replace(SHARED, "uint4* shared = shared_memory.data();")
    # Helpers that are single instructions are those of on_cpu.h.
    helpers = header.split("__device__ __forceinline__ float power_of_two")[0]
    names = inputs

    def run(
        inputs: list[mx.array],
        template: list[tuple[str, Any]],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        output_shapes: list[tuple[int, ...]],
        output_dtypes: list[mx.Dtype],
    ) -> list[mx.array]:
        arrays = [i if isinstance(i, mx.array) else mx.array(i) for i in inputs]
        parameters = []
        for parameter, array in zip(names, arrays, strict=True):
            parameters += [
                f"const {TYPES[array.dtype]}* {parameter}",
                f"const int* {parameter}_shape",
                f"const long* {parameter}_strides",
                f"int {parameter}_ndim",
            ]
        for parameter, dtype in zip(outputs, output_dtypes, strict=True):
            parameters.append(f"{TYPES[dtype]}* {parameter}")
        constants = "".join(
            f"using {n} = {TYPES[v]};\n"
            if isinstance(v, mx.Dtype)
            else f"constexpr int {n} = {int(v)};\n"
            for n, v in template
        )
        given = ", ".join(p.split()[-1] for p in parameters)
        function = _compiled(
            f"{helpers}\nstatic void work({', '.join(parameters)}) {{\n{constants}{body}\n}}\n"
            f'extern "C" void run(const int* grid, const int* block, {", ".join(parameters)}) {{\n'
            f"  launch(grid, block, [=] {{ work({given}); }});\n}}\n"
        )
        arguments: list[Any] = [(ctypes.c_int * 3)(*grid), (ctypes.c_int * 3)(*threadgroup)]
        held = [_numpy(a, name in strided) for name, a in zip(names, arrays, strict=True)]
        for data in held:
            n = max(1, data.ndim)
            arguments += [
                ctypes.c_void_p(data.ctypes.data),
                (ctypes.c_int * n)(*data.shape),
                (ctypes.c_long * n)(*(stride // data.itemsize for stride in data.strides)),
                ctypes.c_int(data.ndim),
            ]
        # What a kernel does not write shows.
        made = [
            np.full(shape, 0x7FC0 if dtype == mx.bfloat16 else np.nan, _numpy_type(dtype))
            for shape, dtype in zip(output_shapes, output_dtypes, strict=True)
        ]
        function(*arguments, *(ctypes.c_void_p(data.ctypes.data) for data in made))
        return [mx.array(a).view(d) for a, d in zip(made, output_dtypes, strict=True)]

    return run


def _numpy_type(dtype: mx.Dtype) -> Any:
    return np.uint16 if dtype == mx.bfloat16 else np.float32


def _numpy(array: mx.array, strided: bool) -> np.ndarray:
    words = np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)
    if not strided:
        return np.ascontiguousarray(words)
    apart = np.full((*words.shape[:-2], words.shape[-2] + 3, words.shape[-1]), 0x7FC0, words.dtype)
    apart[..., : words.shape[-2], :] = words  # what lies between must not be read
    return apart[..., : words.shape[-2], :]


@functools.cache
def _compiled(source: str) -> Any:
    assert COMPILER
    folder = Path(tempfile.mkdtemp(prefix="cuda-on-cpu-"))
    try:
        (folder / "kernel.cpp").write_text(
            f'#include "{Path(__file__).with_suffix(".h")}"\n{source}', encoding="utf-8"
        )
        flags = ["-std=c++20", "-O1", "-fno-strict-aliasing", "-w", "-shared", "-fPIC", "-pthread"]
        subprocess.run(
            [COMPILER, *flags, "-o", str(folder / "kernel.so"), str(folder / "kernel.cpp")],
            check=True,
        )
        return ctypes.CDLL(str(folder / "kernel.so")).run
    finally:
        shutil.rmtree(folder)  # a loaded library stays


@functools.cache
def runs() -> bool:
    """Whether there is a compiler that knows C++20."""
    if COMPILER is None:
        return False
    try:
        _compiled('extern "C" void run() {}')
    except subprocess.CalledProcessError:
        return False
    return True
