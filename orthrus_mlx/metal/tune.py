"""Try the kernels on this Mac, each in a process that it may bring down, and keep the verdict."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from .kernels import VARIANTS, Product
from .modules import products
from .verdict import Timed, Verdict, keep

SECONDS = 300.0  # for one kernel
CHILD = (sys.executable, "-m", "orthrus_mlx.metal.child")


def tune(
    model: Any,
    seconds: float = SECONDS,
    command: Sequence[str] = CHILD,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verdict:
    """Try every kernel on the shapes of a model, whose weights are not read, and keep the verdict.

    `command` starts the process for one kernel, which counts as hanging after so many seconds.
    """
    verdict = Verdict([], {})
    for number, variant in enumerate(VARIANTS):
        progress(number, len(VARIANTS))
        found, fault = try_kernel(variant, products(model), command, seconds)
        verdict.found.extend(found)
        verdict.faults.update({variant: fault} if fault else {})
    progress(len(VARIANTS), len(VARIANTS))
    keep(model, verdict)
    return verdict


def try_kernel(
    variant: str, kinds: Sequence[Product], command: Sequence[str], seconds: float
) -> tuple[list[Timed], str]:
    """Its times by kind of product, and what is wrong with it; "" for nothing."""
    job, code = json.dumps({"variant": variant, "products": kinds}).encode(), -1
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    try:
        done = subprocess.run(command, input=job, timeout=seconds, check=False, **pipes)
        output, code = done.stdout, done.returncode
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        fault = f"its process died ({how})"
    except subprocess.TimeoutExpired as late:
        output, fault = late.output or b"", f"it took more than {seconds:g} seconds"
    found: list[Timed] = []
    doing, words = "starting", ""
    for line in output.decode(errors="replace").splitlines():
        try:
            told = json.loads(line)
            if "product" in told:
                found.append(Timed(variant, Product(*told["product"]), told["ms"]))
            elif code == 0 and ("fault" in told or "finished" in told):
                return [] if "fault" in told else found, told.get("fault", "")
            doing = told.get("doing", doing)
        except (ValueError, TypeError, AttributeError):  # what MLX or the system writes
            words = f": {line.strip()}" if line.strip() else words
    return [], f"{fault}, {doing}{words}"
