"""`orthrus-mlx info`: a checkpoint's shape, memory needs, and numerics on this device."""

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .options import examples

if TYPE_CHECKING:
    from rich.table import Table

    from orthrus_mlx.checkpoint.info import ModelInfo, ViewInfo

EXAMPLES = examples(
    "orthrus-mlx info demo",
    "orthrus-mlx info chiennv/Orthrus-Qwen3-8B",
    "orthrus-mlx info mlx_model --json",
)


def info(
    model: options.NeededModelArgument,
    revision: options.RevisionOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; sizes in bytes.")] = False,
) -> None:
    """Describe a checkpoint: shape, size of each view, memory needed, exact numerics here.

    Reads no weights; of a Hugging Face id it downloads kilobytes.
    """
    from orthrus_mlx.checkpoint.info import describe

    described = describe(model, revision)
    if as_json:
        import json

        typer.echo(json.dumps(described.to_dict(), indent=2))
        return
    print_info(described)


def print_info(described: "ModelInfo") -> None:
    """Print a description for people."""
    from .console import answer_console

    console = answer_console()
    console.print(facts(described))
    console.print()
    console.print(weights(described))
    console.print(grid({"Several Macs": ranks(described), **numerics(described)}))


def facts(described: "ModelInfo") -> "Table":
    """Lay out everything but the weights."""
    config = described.config
    layouts = {
        "public": "public: both views in model*.safetensors",
        "mlx": "MLX: the diffusion view apart in orthrus_diff.safetensors",
    }
    rope = config.rope_scaling["rope_type"] if config.rope_scaling else "default"
    per_token, limit = described.kv_bytes_per_token, described.kv_bytes_at_limit
    return grid(
        {
            "Model": described.model,
            "Layout": layouts[described.layout],
            "Architecture": f"{config.model_type}, {config.num_hidden_layers} layers of "
            f"{config.hidden_size}, {config.num_attention_heads} heads, "
            f"{config.num_key_value_heads} for keys and values, of {config.head_dim}",
            "Block": f"{config.block_size} rows, {config.block_size - 1} drafts; mask token "
            f"{config.mask_token_id}",
            "Context": f"{config.max_position_embeddings:,} tokens (rope: {rope})",
            "Vocabulary": f"{config.vocab_size:,}, "
            + ("tied embeddings" if config.tie_word_embeddings else "a head of its own"),
            "Tokenizer": ("yes" if described.has_tokenizer else "missing")
            + (", with a chat template" if described.has_chat_template else ", no chat template"),
            "Memory": f"{size(described.weight_bytes)} of weights, {size(per_token)} of cache a "
            f"token; {size(described.weight_bytes + limit)} with the context full",
        }
    )


def numerics(described: "ModelInfo") -> dict[str, str]:
    """Say what the probe found on this device, or how to run it."""
    from orthrus_mlx.device.measured import MLX_VERSION, device_name

    from .probing import exact_line, probe_line

    facts = {"Device": f"{device_name()}, mlx {MLX_VERSION}"}
    if described.probe is None:
        command = f"orthrus-mlx verify {shlex.quote(described.model)}"
        unknown = f"unknown: not probed yet; `{command}` does it, as does first use"
        return facts | {"Exact numerics": unknown}
    found = {
        "Exact numerics": exact_line(described.exact_rows),
        "Probe": probe_line(described.probe),
    }
    return facts | found


def ranks(described: "ModelInfo") -> str:
    """Say how many machines can hold the model together, and what each would hold."""
    can = [held for held in described.shares.values() if not isinstance(held, str)]
    cannot = {n: held for n, held in described.shares.items() if isinstance(held, str)}
    parts = [
        f"{held.ranks}: {size(held.weights)}"
        + (f" on the first, {size(held.others)}" if held.others != held.weights else "")
        + " each"
        for held in can
    ]
    if cannot:
        numbers = ", ".join(map(str, cannot))
        parts.append(f"not {numbers}: {next(iter(cannot.values()))}")
    return "; ".join(parts)


def grid(rows: dict[str, str]) -> "Table":
    """Lay out names and values in two columns."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table


def weights(described: "ModelInfo") -> "Table":
    """Lay out the size and the storage types of each view."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Weights")
    table.add_column("Parameters", justify="right")
    table.add_column("Size", justify="right")
    table.add_column("Stored as", overflow="fold")
    names = {"shared": "shared by both views", "ar": "AR view", "diffusion": "diffusion view"}
    for key, view in described.views.items():
        table.add_row(names[key], f"{view.parameters:,}", size(view.bytes), storage(view))
    table.add_section()
    table.add_row("all", f"{described.parameters:,}", size(described.weight_bytes), "")
    return table


def storage(view: "ViewInfo") -> str:
    """Name the storage types of a view's weights, the rare ones (norms) last."""
    return "; ".join(view.stored_as)


def size(count: int) -> str:
    """Write a number of bytes in the decimal units that disks and mlx-lm use."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.{2 if unit == 'GB' else 1}f} {unit}"
    return f"{count} bytes"
