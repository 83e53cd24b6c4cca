"""The conversion from end to end: check, plan, write, verify, publish."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..checkpoint.contents import weight_files
from ..checkpoint.read import inspect, resolve
from ..checkpoint.staging import check_absent, staged_folder
from ..checkpoint.tensors import DIFFUSION_FILE, read_headers, some
from ..checkpoint.write import copy_files, files_to_copy, write_index, write_json
from ..errors import CheckpointError, OutputError
from ..files import expanded
from .card import model_card
from .config import output_config
from .options import check_options
from .plan import PlannedFile, make_plan, output_bytes, source_bytes
from .read import SourceReader
from .upload import upload
from .writer import SafetensorsWriter

CARD = "README.md"


def convert(
    hf_path: str | Path,
    mlx_path: str | Path = "mlx_model",
    *,
    quantize: bool = False,
    q_bits: int | None = None,
    q_group_size: int | None = None,
    q_mode: str = "affine",
    dtype: str | None = None,
    diffusion_q_bits: int | None = None,
    revision: str | None = None,
    upload_repo: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Convert an Orthrus checkpoint to MLX's layout, quantized if asked.

    The result loads in orthrus-mlx, and in stock mlx-lm as plain Qwen3. It appears at `mlx_path`
    whole or not at all. One tensor at a time is in memory.

    Args:
        hf_path: a folder or a Hub id.
        mlx_path: the folder to create; must not exist.
        quantize: pack the weights, as mlx-lm would.
        q_bits: bits per weight; by default 4 (8 for mxfp8).
        q_group_size: weights that share a scale; by default mlx-lm's for the mode.
        q_mode: "affine", "mxfp4", "mxfp8" or "nvfp4".
        dtype: "float16", "bfloat16" or "float32" for what is not packed; by default as it is.
        diffusion_q_bits: bits of the diffusion view, which never changes the output: by default
            those of the AR view; 0 keeps it as it is.
        revision: branch, tag or commit of a Hub id.
        upload_repo: Hub id to upload the result to.
        on_progress: called with the bytes read so far and in all.

    Returns:
        The new folder.

    Raises:
        ConversionError: for inconsistent options, or a quantized source.
        CheckpointError: for a source that is not a sound Orthrus checkpoint.
        OutputError: if the folder exists, cannot be written, or cannot be uploaded.
    """
    options = check_options(
        quantize=quantize,
        q_bits=q_bits,
        q_group_size=q_group_size,
        q_mode=q_mode,
        dtype=dtype,
        diffusion_q_bits=diffusion_q_bits,
        upload_repo=upload_repo,
    )
    final = expanded(mlx_path, OutputError).absolute()
    check_absent(final)
    checkpoint = inspect(resolve(hf_path, revision))
    plan = make_plan(checkpoint, options)
    copied = files_to_copy(checkpoint.folder, leave_out=[CARD])

    needed = output_bytes(plan) + sum(path.stat().st_size for path in copied)
    with staged_folder(final, needed) as folder:
        write_weights(folder, plan, on_progress)
        index(folder, plan)
        write_json(folder / "config.json", output_config(checkpoint.config, options))
        copy_files(copied, folder)
        card = model_card(checkpoint, str(hf_path), upload_repo or final.name, options)
        (folder / CARD).write_text(card, encoding="utf-8")
        verify(folder, plan)
    if upload_repo is not None:
        upload(final, upload_repo)
    return final


def write_weights(
    folder: Path, plan: list[PlannedFile], on_progress: Callable[[int, int], None] | None = None
) -> None:
    """Read, cast, pack and write every tensor of the plan."""
    reader = SourceReader()
    done, total = 0, source_bytes(plan)
    for file in plan:
        with SafetensorsWriter(folder / file.name, file.specs) as writer:
            for step in file.steps:
                arrays = reader.read(step)
                for spec in step.outputs:
                    writer.write(spec.name, arrays.pop(0))  # and free it
                done += step.source.nbytes
                if on_progress is not None:
                    on_progress(done, total)


def index(folder: Path, plan: list[PlannedFile]) -> None:
    """Write the index JSON of the AR view alone, so that stock mlx-lm sees a plain Qwen3."""
    files = [file for file in plan if file.name != DIFFUSION_FILE]
    weight_map = {spec.name: file.name for file in files for spec in file.specs}
    parameters = sum(step.parameters for file in files for step in file.steps)
    write_index(folder, weight_map, output_bytes(files), parameters)


def verify(folder: Path, plan: list[PlannedFile]) -> None:
    """Read the headers of what was written and compare them with the plan, tensor by tensor.

    Raises:
        OutputError: naming what is missing, unexpected or different.
    """
    planned = {spec.name: (file.name, spec) for file in plan for spec in file.specs}
    try:
        found = read_headers(weight_files(folder))
        inspect(folder)  # the loader's own check
    except CheckpointError as e:
        raise OutputError(f"What was written cannot be loaded, and was removed: {e}") from e
    problems = []
    if missing := sorted(planned.keys() - found.keys()):
        problems.append(f"missing: {some(missing)}")
    if unexpected := sorted(found.keys() - planned.keys()):
        problems.append(f"unexpected: {some(unexpected)}")
    for name in sorted(planned.keys() & found.keys()):
        file, spec = planned[name]
        info = found[name]
        if (file, spec.dtype, spec.shape) != (info.file.name, info.dtype, info.shape):
            problems.append(
                f"{name} is {info.dtype} {list(info.shape)} in {info.file.name} instead of "
                f"{spec.dtype} {list(spec.shape)} in {file}"
            )
    if problems:
        raise OutputError(
            "What was written is not what was planned, and was removed. " + "; ".join(problems[:6])
        )
