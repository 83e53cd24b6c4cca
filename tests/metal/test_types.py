"""The kernels' types and address spaces, as Clang sees them, of which Metal's compiler is made.

g++ runs the kernels but knows no address spaces. Clang has them in C++ too, so that a pointer into
the wrong one is an error.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from orthrus_mlx.metal.kernels import HEADER, MAX_ROWS, PLAIN, VARIANTS

CLANG = shutil.which("clang++")
# What `mx.fast.metal_kernel` declares, and functions as the specification declares them.
DECLARED = """
using uint = unsigned; using uint32_t = uint; using ulong = unsigned long; using size_t = ulong;
#define device __attribute__((address_space(1)))
#define constant __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#define thread
namespace metal {
struct uint3 { uint x, y, z; };
struct ulong2 { ulong x, y; ulong2(ulong x, ulong y) : x(x), y(y) {} };
template <typename T, int C, int R> struct simdgroup_matrix { T of_thread[2]; };
using simdgroup_float8x8 = simdgroup_matrix<float, 8, 8>;
enum class mem_flags { mem_none, mem_threadgroup };
void simdgroup_barrier(mem_flags);
void threadgroup_barrier(mem_flags);
float simd_sum(float);
int min(int, int);
uint min(uint, uint);
float fma(float, float, float);
#define M(T, C, R) thread simdgroup_matrix<T, C, R>
#define MORE ulong in_row = C, ulong2 origin = ulong2(0, 0), bool transpose = false
template <typename T, int C, int R> simdgroup_matrix<T, C, R> make_filled_simdgroup_matrix(T);
template <typename T, int C, int R> void simdgroup_load(M(T, C, R)&, const threadgroup T*, MORE);
template <typename T, int C, int R> void simdgroup_load(M(T, C, R)&, const device T*, MORE);
template <typename T, int C, int R> void simdgroup_store(M(T, C, R), threadgroup T*, MORE);
template <typename T, int C, int R> void simdgroup_store(M(T, C, R), device T*, MORE);
template <typename T, int C, int R, int K> void simdgroup_multiply_accumulate(
    M(T, C, R)&, M(T, K, R)&, M(T, C, K)&, M(T, C, R)&);
#undef M
}
"""
POSITIONS = {
    "simdgroup_index_in_threadgroup": "uint",
    "thread_index_in_simdgroup": "uint",
    "thread_index_in_threadgroup": "uint",
    "threadgroup_position_in_grid": "uint3",
}


def source() -> str:
    """All kernels over all packings and numbers of rows."""
    text = DECLARED + re.sub(r"#include <metal_\w+>", "", HEADER)
    for number, (body, size, _, simds, step) in enumerate(VARIANTS.values()):
        # Locals in an address space are Metal's own; static ones are Clang's too.
        body = body.replace("threadgroup float", "static threadgroup float")
        for bits, group in ((PLAIN, 1), (4, 64), (8, 32)):
            names = ["weight"] if bits == PLAIN else ["weight", "scales", "biases"]
            given: list[tuple[str, str]] = []
            for name in ("x", *names):
                packed = name == "weight" and bits != PLAIN
                given.append((f"const device {'uint32_t' if packed else 'T'}*", name))
                if f"{name}_shape" in body:
                    given.append(("const constant int*", f"{name}_shape"))
            given.append(("device T*", "y"))
            given += [(kind, name) for name, kind in POSITIONS.items() if name in body]
            text += f"""
template <typename T, int BITS, int GROUP, int SIZE, int SIMDS, int ROWS>
void kernel_{number}_{bits}({", ".join(map(" ".join, given))}) {{
{body.replace("WEIGHTS", ", ".join(names))}
}}
"""
            kinds = ", ".join(kind.replace("T*", "_Float16*") for kind, _ in given)
            for rows in range(step, MAX_ROWS + 1, step):
                constants = f"_Float16, {bits}, {group}, {size}, {simds}, {rows}"
                text += f"template void kernel_{number}_{bits}<{constants}>({kinds});\n"
    return text


def errors(text: str, folder: Path) -> list[str]:
    (folder / "kernels.cpp").write_text(text, encoding="utf-8")
    assert CLANG
    flags = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra"]
    flags += ["--target=x86_64-unknown-linux-gnu", "-Wno-unknown-warning-option"]
    done = subprocess.run(
        [CLANG, *flags, str(folder / "kernels.cpp")], capture_output=True, text=True, check=False
    )
    found = re.findall(r"(?:error|warning): .*", done.stderr)
    return found or ([done.stderr] if done.returncode else [])


@pytest.mark.skipif(CLANG is None, reason="needs clang++")
def test_pointers_are_into_the_right_address_spaces(tmp_path: Path) -> None:
    text = source()
    assert errors(text, tmp_path) == []
    for right, wrong in (
        ("thread float* to", "threadgroup float* to"),
        ("const device uint* weight", "const threadgroup uint* weight"),
        ("&inputs[simd]", "(device float*)0 + inputs[simd]"),
    ):
        assert right in text
        assert errors(text.replace(right, wrong), tmp_path)
