"""`orthrus-mlx convert`: a Hugging Face checkpoint to MLX's layout, quantized if asked."""

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .options import Dtype, examples

EXAMPLES = examples(
    f"orthrus-mlx convert --hf-path {options.REAL_MODEL} -q --mlx-path orthrus-4bit",
    f"orthrus-mlx convert --hf-path {options.REAL_MODEL} -q --q-bits 8 --diffusion-q-bits 4",
    "orthrus-mlx convert --model my-orthrus -q --q-mode mxfp4 --upload-repo me/my-orthrus-mlx",
)
_QUANTIZATION = "Quantization"


class QMode(StrEnum):
    """MLX's quantization modes."""

    affine = "affine"
    mxfp4 = "mxfp4"
    mxfp8 = "mxfp8"
    nvfp4 = "nvfp4"


def convert(
    hf_path: Annotated[
        str,
        typer.Option(
            "--hf-path",
            "--model",
            help="The checkpoint to convert: a folder or a Hugging Face id.",
            show_default=False,
        ),
    ],
    mlx_path: Annotated[
        Path, typer.Option(help="The folder to create; must not exist.", metavar="FOLDER")
    ] = Path("mlx_model"),
    revision: options.RevisionOption = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            metavar="TYPE",
            help="Type of the weights that are not quantized: float32, bfloat16 or float16. "
            "[dim]\\[default: as they are][/dim]",
            show_default=False,
        ),
    ] = None,
    upload_repo: Annotated[
        str | None,
        typer.Option(
            help="Hugging Face id to upload the result to.", metavar="ID", show_default=False
        ),
    ] = None,
    quantize: Annotated[
        bool,
        typer.Option(
            "--quantize", "-q", help="Quantize the weights.", rich_help_panel=_QUANTIZATION
        ),
    ] = False,
    q_bits: Annotated[
        int | None,
        typer.Option(
            help="Bits per weight: 2 to 6, or 8. [dim]\\[default: 4; 8 for mxfp8][/dim]",
            metavar="N",
            show_default=False,
            rich_help_panel=_QUANTIZATION,
        ),
    ] = None,
    q_group_size: Annotated[
        int | None,
        typer.Option(
            help="Weights that share a scale: 32, 64 or 128. "
            "[dim]\\[default: 64; 32 for mxfp4 and mxfp8, 16 for nvfp4][/dim]",
            metavar="N",
            show_default=False,
            rich_help_panel=_QUANTIZATION,
        ),
    ] = None,
    q_mode: Annotated[
        QMode, typer.Option(help="Quantization mode.", rich_help_panel=_QUANTIZATION)
    ] = QMode.affine,
    diffusion_q_bits: Annotated[
        int | None,
        typer.Option(
            help="Bits per weight of the diffusion view, which never changes the output; 0 leaves "
            "it as it is. [dim]\\[default: as the AR view][/dim]",
            metavar="N",
            show_default=False,
            rich_help_panel=_QUANTIZATION,
        ),
    ] = None,
) -> None:
    """Convert a Hugging Face checkpoint to MLX's layout.

    The result also loads in stock mlx-lm, as plain Qwen3. It appears whole or not
    at all. It takes about as much memory as the largest tensor.
    """
    from rich.progress import DownloadColumn

    from orthrus_mlx.checkpoint.info import describe
    from orthrus_mlx.convert import convert as run

    from .console import note, stderr_console
    from .info import print_info
    from .progress import Bar

    notes = stderr_console()
    with Bar(notes, "Converting", amount=DownloadColumn, patience=0.0) as bar:
        folder = run(
            hf_path,
            mlx_path,
            quantize=quantize,
            q_bits=q_bits,
            q_group_size=q_group_size,
            q_mode=q_mode.value,
            dtype=None if dtype is None else dtype.value,
            diffusion_q_bits=diffusion_q_bits,
            revision=revision,
            upload_repo=upload_repo,
            on_progress=bar,
        )
    print_info(describe(folder))
    hint = f"orthrus-mlx chat --model {shlex.quote(str(mlx_path))}"
    note(notes, f"Wrote {mlx_path}. Try it: {hint}")
    if upload_repo is not None:
        note(notes, f"Uploaded to https://huggingface.co/{upload_repo}")
