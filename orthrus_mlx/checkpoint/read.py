"""Find a checkpoint (bundled, folder or Hub), read it, build the model and its tokenizer.

Two layouts load alike: the public one, with both views in `model*.safetensors`, and the one that
`orthrus-mlx convert` writes, with the diffusion view apart in `orthrus_diff.safetensors`. Files
are untrusted: names, shapes and sizes are checked from the safetensors headers before any weight
is read; nothing is unpickled and no code of the checkpoint is run.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    IncompleteCheckpointError,
    brief,
)
from ..files import (
    CHECKPOINT_BYTES,
    decoded,
    expanded,
    parse_json,
    part_bytes,
    read_bytes,
)
from .config import LIMITS, read_json
from .contents import Checkpoint, check, weight_files
from .fingerprint import Origin, outline
from .hub import TOKENIZER_FILES, download
from .hub_cache import hint_at
from .hub_names import HubModel, parse
from .tensors import (
    packing,
    read_headers,
)

DEMO = "demo"
# What transformers opens besides, where a checkpoint has it.
OTHER_TOKENIZER_FILES = ("chat_template.json", "processor_config.json", "tokenizer.model")


def resolve(path_or_hf_repo: str | Path, revision: str | None = None) -> Path:
    """The local folder of a checkpoint, downloading what is missing of a Hub model.

    Raises:
        CheckpointNotFoundError: if there is no such folder or repository, or no network.
    """
    found = locate(path_or_hf_repo, revision)
    return found if isinstance(found, Path) else download(found.repo_id, found.revision)


def locate(path_or_hf_repo: str | Path, revision: str | None = None) -> Path | HubModel:
    """The folder or the Hub model that is meant: "demo", a folder, a Hub id or a Hub address.

    Raises:
        CheckpointNotFoundError: if it is none of these, or has no such revision.
    """
    if not isinstance(path_or_hf_repo, str | os.PathLike):
        raise CheckpointNotFoundError(
            f"The model is {path_or_hf_repo!r}; expected the name of a folder or a Hub id."
        )
    name = os.fspath(path_or_hf_repo)
    if not name.strip():
        raise CheckpointNotFoundError(
            "The name of the model is empty. Give a folder, a Hub id or 'demo'."
        )
    if revision is not None and not (isinstance(revision, str) and revision.strip()):
        raise CheckpointNotFoundError(
            f"The revision is {revision!r}. Give a branch, a tag or a commit, or leave it out."
        )
    folder = _local_folder(name)
    if folder is not None:
        if revision is not None:
            which = "the bundled demo has none" if name == DEMO else f"{folder} is a folder"
            raise CheckpointNotFoundError(
                f"A revision ({revision!r}) is that of a Hub model, and {which}. Leave the "
                f"revision out. {_hides(folder)}".rstrip()
            )
        return folder
    found = parse(name)
    if found is None:
        raise CheckpointNotFoundError(
            f"There is no folder {name}, and it is not a Hub id of the form owner/name."
        )
    if revision is None or found.revision in (None, revision):
        return HubModel(found.repo_id, revision or found.revision)
    raise CheckpointNotFoundError(
        f"{name} names revision {found.revision!r}, and {revision!r} was asked for. Give one."
    )


def _local_folder(name: str) -> Path | None:
    if name == DEMO:
        return Path(__file__).parents[1] / "demo"
    path = expanded(name, CheckpointNotFoundError)
    try:
        if path.is_dir():
            return path
        is_file = path.is_file()
    except (OSError, ValueError):  # too long for a file name, or a null character in it
        return None
    if is_file:
        raise CheckpointNotFoundError(f"{path} is a file; give the folder that holds it.")
    return None


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Add to what is wrong with a checkpoint what its place tells: a Hub cache, a hidden Hub id."""
    try:
        yield
    except CheckpointError as e:
        if hint := hint_at(folder) or _hides(folder):
            raise type(e)(f"{e} {hint}") from e
        raise


def _hides(folder: Path) -> str:
    """How to get at the Hub model whose id is also the name of a folder here."""
    hidden = parse(str(folder))
    if hidden is None:
        return ""
    return f"The folder {folder} hides the Hub's model of that name: {hidden.url} loads that."


def inspect(folder: Path) -> Checkpoint:
    """Check a checkpoint folder from its config and safetensors headers alone.

    Raises:
        CheckpointError: naming the file or tensors at fault.
    """
    with explained(folder):
        return check(folder, read_headers(weight_files(folder)))


def load_model(checkpoint: Checkpoint, *, lazy: bool = False, tune: bool = True) -> Any:
    """Build the model of a checked checkpoint and read its weights."""
    from ..model import Model

    model = Model(checkpoint.config)
    tensors = checkpoint.tensors

    def packed(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if f"{path}.scales" not in tensors:
            return False
        return packing(path, module.weight.shape[-1], tensors)

    nn.quantize(model, class_predicate=packed)
    weights = []
    for file in checkpoint.files:
        content = mx.load(str(file))
        assert isinstance(content, dict)
        weights += [(name, a) for name, a in content.items() if name in tensors]
    model.eval()
    model.load_weights(weights, strict=True)
    del weights, content  # or `ready` could keep every weight in memory twice
    # After every change of parameters: measurements are looked up by it.
    model.origin = Origin(checkpoint.fingerprint, outline(model))
    model.folder, model.tune = checkpoint.folder, tune
    return ready(model, lazy=lazy)


def ready(model: Any, *, lazy: bool = False) -> Any:
    """Read the weights into memory, and swap in the device's own modules where there are any.

    Call it on every model that is built, and again after its weights or modules are replaced (cast,
    quantized).
    """
    from .. import cuda, metal

    if not lazy:
        mx.eval(model.parameters())
    return metal.accelerate(cuda.accelerate(model))


def load_tokenizer(folder: Path) -> Any:
    """mlx-lm's `TokenizerWrapper` for a checkpoint folder.

    Its end tokens are those of config.json and generation_config.json, and `<|endoftext|>` where
    the vocabulary has it: Qwen3's base configuration ends on it too, which the published Orthrus
    configurations leave out.
    """
    from mlx_lm import tokenizer_utils
    from transformers import Qwen3Config

    with explained(folder):
        check_tokenizer_files(folder)
    # Of config.json, transformers would read and judge every field, also those unknown to us.
    known = {"trust_remote_code": False, "local_files_only": True, "config": Qwen3Config()}
    try:
        tokenizer = tokenizer_utils.load(folder, known)
        has_end = "<|endoftext|>" in tokenizer.get_vocab()
        tokenizer.decode(tokenizer.encode("a"))
    # It is built of what stands in the files, and `tokenizers` raises plain exceptions.
    except Exception as e:
        raise CheckpointError(f"The tokenizer in {folder} cannot be loaded: {brief(e)}.") from e
    for name in ("config.json", "generation_config.json"):
        for token in _eos_ids(folder / name):
            tokenizer.add_eos_token(str(token))
    if has_end:
        tokenizer.add_eos_token("<|endoftext|>")
    return tokenizer


def check_tokenizer_files(folder: Path) -> None:
    """Read the files of a tokenizer before libraries do, whose errors name no file.

    Raises:
        CheckpointError: for what is no regular file, too large, a link that leaves the folder, no
            UTF-8 or no JSON; or begins with a byte order mark, which transformers does not know.
    """
    if not os.path.lexists(folder / "tokenizer.json"):
        raise IncompleteCheckpointError(
            f"{folder} has no tokenizer.json. Copy it from the base model's folder."
        )
    paths = [folder / name for name in (*TOKENIZER_FILES, *OTHER_TOKENIZER_FILES)]
    paths += sorted((folder / "additional_chat_templates").glob("*.jinja"))
    for path in filter(os.path.lexists, paths):
        content = read_bytes(path, CheckpointError, part_bytes(path), folder)
        if content.startswith(codecs.BOM_UTF8):
            raise CheckpointError(
                f"{path} begins with a byte order mark. Save it as UTF-8 without one."
            )
        if path.suffix != ".model":  # which is no text
            text = decoded(content, str(path), CheckpointError)
            if path.suffix == ".json" and len(content) < CHECKPOINT_BYTES:  # else it takes long
                parse_json(text, str(path), CheckpointError)


def _eos_ids(path: Path) -> list[int]:
    """The end tokens that a JSON file names, if there is one; text in their place is passed over.

    Raises:
        ConfigError: for an id that no vocabulary has.
    """
    value = read_json(path).get("eos_token_id") if os.path.lexists(path) else None
    given = value if isinstance(value, list) else [value]
    ids = [i for i in given if isinstance(i, int) and not isinstance(i, bool)]
    if beyond := [i for i in ids if not 0 <= i < LIMITS["vocab_size"]]:
        raise ConfigError(f"{path}: eos_token_id holds {beyond[0]}, which is no token id.")
    return ids
