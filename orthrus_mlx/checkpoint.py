"""Find a checkpoint (bundled, folder or Hub), read it, build the model and its tokenizer.

Two layouts load alike: the public one, with both views in `model*.safetensors`, and the one that
`orthrus-mlx convert` writes, with the diffusion view apart in `orthrus_diff.safetensors`. Files
are untrusted: names, shapes and sizes are checked from the safetensors headers before any weight
is read; nothing is unpickled and no code of the checkpoint is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from .config import ModelConfig, read_json
from .errors import (
    CheckpointError,
    CheckpointNotFoundError,
    IncompleteCheckpointError,
    NotOrthrusError,
    TensorError,
    UnsafeCheckpointError,
)

DEMO = "demo"
EXAMPLE_HUB_ID = "chiennv/Orthrus-Qwen3-1.7B"
DIFFUSION_FILE = "orthrus_diff.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# Everything that a model and its tokenizer can need, and nothing that could hold code.
HUB_PATTERNS = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    INDEX_FILE,
    DIFFUSION_FILE,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
FLOATS = ("BF16", "F16", "F32")


class TensorInfo(NamedTuple):
    """One tensor as its file's header describes it."""

    dtype: str
    shape: tuple[int, ...]
    file: Path


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder, checked against its own config without reading a weight.

    Attributes:
        folder: where it lies.
        config: its shape.
        tensors: every tensor that the model takes, by name.
    """

    folder: Path
    config: ModelConfig
    tensors: dict[str, TensorInfo]

    @property
    def files(self) -> list[Path]:
        """The weight files, in name order."""
        return sorted({info.file for info in self.tensors.values()})


def load(
    path_or_hf_repo: str | Path, revision: str | None = None, *, lazy: bool = False
) -> tuple[Any, Any]:
    """Load a dual-view model and its tokenizer.

    Args:
        path_or_hf_repo: "demo" (the bundled checkpoint), a folder, or a Hub id such as
            "chiennv/Orthrus-Qwen3-1.7B".
        revision: branch, tag or commit of a Hub id.
        lazy: leave weights on disk until they are first used.

    Returns:
        (model, tokenizer): an `orthrus_mlx.model.Model` and mlx-lm's `TokenizerWrapper`.

    Raises:
        CheckpointError: saying what is wrong, where, and what to do.
    """
    checkpoint = inspect(resolve(path_or_hf_repo, revision))
    return load_model(checkpoint, lazy=lazy), load_tokenizer(checkpoint.folder)


def resolve(path_or_hf_repo: str | Path, revision: str | None = None) -> Path:
    """The local folder of a checkpoint, downloading what is missing of a Hub id.

    Raises:
        CheckpointNotFoundError: if there is no such folder or repository, or no network.
    """
    name = str(path_or_hf_repo)
    if name == DEMO:
        return Path(__file__).parent / "demo"
    path = Path(path_or_hf_repo).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise CheckpointNotFoundError(f"{path} is a file; give the folder that holds it.")
    if not is_hub_id(name):
        raise CheckpointNotFoundError(
            f"There is no folder {name}, and it is not a Hub id of the form owner/name."
        )
    return download(name, revision)


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form of a Hub repository id, owner/name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and not name.startswith((".", "~"))


def download(repo_id: str, revision: str | None = None) -> Path:
    """The Hub's snapshot of `repo_id`: only the files needed, resumed where cut short.

    Uses what is cached when there is no network.

    Raises:
        CheckpointNotFoundError: unknown id or revision, gated, or no network and nothing cached.
    """
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(repo_id, revision=revision, allow_patterns=list(HUB_PATTERNS))
        )
    except hub.GatedRepoError as e:
        raise CheckpointNotFoundError(
            f"{repo_id} is gated: accept its terms on its Hub page, then run `hf auth login`."
        ) from e
    except hub.RevisionNotFoundError as e:
        raise CheckpointNotFoundError(f"{repo_id} has no revision {revision!r} on the Hub.") from e
    except hub.RepositoryNotFoundError as e:
        raise CheckpointNotFoundError(
            f"The Hub knows no model {repo_id!r} (or it is private: `hf auth login`). Check the "
            f"spelling, or give a folder. A public one is {EXAMPLE_HUB_ID}."
        ) from e
    except Exception as e:  # whatever the HTTP client of the day raises
        raise CheckpointNotFoundError(
            f"{repo_id} is not (wholly) in the local cache and cannot be downloaded: {_brief(e)}. "
            "Check the network and the free disk space, then run the same command again; the "
            "download goes on where it stopped."
        ) from e


def inspect(folder: Path) -> Checkpoint:
    """Check a checkpoint folder from its config and safetensors headers alone.

    Raises:
        CheckpointError: naming the file or tensors at fault.
    """
    files = weight_files(folder)
    config = ModelConfig.from_folder(folder)
    tensors = read_headers(files)
    check_tensors(tensors, config, str(folder))
    wanted = expected_shapes(config, tensors)
    return Checkpoint(folder, config, {name: tensors[name] for name in wanted})


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder: those of its index, or all by name.

    Raises:
        UnsafeCheckpointError: for pickle weights, or an index that leaves the folder.
        IncompleteCheckpointError: for a missing file.
    """
    if not folder.is_dir():
        raise CheckpointNotFoundError(f"There is no folder {folder}.")
    index = folder / INDEX_FILE
    names = (
        _indexed_files(index)
        if index.exists()
        else sorted(path.name for path in folder.glob("model*.safetensors"))
    )
    if not names:
        pickles = sorted(
            p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".pkl")
        )
        if pickles:
            raise UnsafeCheckpointError(
                f"{folder} holds pickle weights ({', '.join(pickles[:3])}), which can run code "
                "when opened and are refused. Use a safetensors version of the checkpoint."
            )
        raise IncompleteCheckpointError(
            f"{folder} holds no model*.safetensors{_partial_download(folder)}. A checkpoint folder "
            "holds config.json, tokenizer files and model*.safetensors."
        )
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise IncompleteCheckpointError(
            f"{index} names {len(missing)} file(s) that are not there: {', '.join(missing[:5])}"
            f"{_partial_download(folder)}. Download them again."
        )
    if (folder / DIFFUSION_FILE).exists() and DIFFUSION_FILE not in names:
        names.append(DIFFUSION_FILE)
    return [folder / name for name in names]


def _indexed_files(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
        raise IncompleteCheckpointError(f"{index} has no usable weight_map. Download it again.")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UnsafeCheckpointError(
                f"{index} names {name!r}; only safetensors files beside it are read."
            )
    return names


def _partial_download(folder: Path) -> str:
    """A hint where the folder shows traces of a download that did not finish."""
    traces = [p for p in folder.rglob("*") if p.suffix in (".incomplete", ".part", ".crdownload")]
    return f" (a download seems unfinished: {traces[0].name})" if traces else ""


def read_headers(files: list[Path]) -> dict[str, TensorInfo]:
    """Name, dtype, shape and file of every tensor, from the headers alone.

    Raises:
        IncompleteCheckpointError: for a truncated or corrupt file.
        TensorError: for a tensor that two files hold.
    """
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, TensorInfo] = {}
    for file in files:
        try:
            with safe_open(file, framework="numpy") as content:
                for name in content.keys():  # noqa: SIM118 (not a mapping)
                    part = content.get_slice(name)
                    info = TensorInfo(part.get_dtype(), tuple(part.get_shape()), file)
                    if name in tensors:
                        raise TensorError(
                            f"Tensor {name} is in both {tensors[name].file.name} and {file.name} "
                            f"of {file.parent}. Remove the file that does not belong there."
                        )
                    tensors[name] = info
        except (SafetensorError, OSError) as e:
            with file.open("rb") as start:
                pointer = start.read(40).startswith(b"version https://git-lfs")
            hint = "it is a Git LFS pointer; run `git lfs pull`" if pointer else "download it again"
            raise IncompleteCheckpointError(
                f"{file} is not a whole safetensors file ({_brief(e)}): {hint}."
            ) from e
    return tensors


def check_tensors(tensors: dict[str, TensorInfo], config: ModelConfig, where: str) -> None:
    """Compare what is there with what the config calls for.

    Raises:
        NotOrthrusError: if the whole diffusion view is absent.
        TensorError: naming tensors that are missing, unexpected, or of the wrong shape or type.
    """
    from .model import is_diffusion, sanitize

    found = sanitize(tensors, config)
    expected = expected_shapes(config, found)
    missing = sorted(expected.keys() - found.keys())
    if missing and all(map(is_diffusion, missing)) and not any(map(is_diffusion, found)):
        groups = sorted({name.split(".")[-2] for name in missing})
        raise NotOrthrusError(
            f"{where} has no diffusion view: every layer lacks {', '.join(groups)}. It seems to be "
            f"a plain Qwen3 checkpoint of {config.num_hidden_layers} layers, or a converted one "
            f"whose {DIFFUSION_FILE} was left behind."
        )
    problems = []
    if missing:
        problems.append(f"{len(missing)} tensor(s) missing: {_some(missing)}")
    if unexpected := sorted(found.keys() - expected.keys()):
        problems.append(f"{len(unexpected)} unexpected tensor(s): {_some(unexpected)}")
    for name in sorted(expected.keys() & found.keys()):
        shape, dtypes = expected[name]
        if found[name].shape != shape:
            problems.append(
                f"{name} in {found[name].file.name} has shape {list(found[name].shape)}, and "
                f"config.json calls for {list(shape)}"
            )
        if found[name].dtype not in dtypes:
            problems.append(
                f"{name} in {found[name].file.name} is of type {found[name].dtype}; expected "
                f"{' or '.join(dtypes)}"
            )
    if problems:
        raise TensorError(f"{where} does not fit its config.json. " + "; ".join(problems[:6]) + ".")


def expected_shapes(
    config: ModelConfig, tensors: dict[str, TensorInfo]
) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """Shape and allowed dtypes of every tensor of a model, packed where `tensors` is packed."""
    expected: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {}
    for name, shape in plain_shapes(config).items():
        path = name.removesuffix(".weight")
        if f"{path}.scales" not in tensors or f"{path}.weight" not in tensors:
            expected[name] = (shape, FLOATS)
            continue
        pack = packing(path, shape[-1], tensors)
        scale_types = FLOATS if pack["mode"] == "affine" else ("U8",)
        rows, groups = shape[:-1], shape[-1] // pack["group_size"]
        expected[name] = ((*rows, shape[-1] * pack["bits"] // 32), ("U32",))
        expected[f"{path}.scales"] = ((*rows, groups), scale_types)
        if pack["mode"] == "affine":
            expected[f"{path}.biases"] = ((*rows, groups), FLOATS)
    return expected


def plain_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the unquantized model (laid out lazily, nothing is allocated)."""
    from .model import Model

    flat: Any = tree_flatten(Model(config).parameters())
    return {name: tuple(array.shape) for name, array in flat}


def packing(path: str, in_dims: int, tensors: dict[str, TensorInfo]) -> dict[str, Any]:
    """How the weight at `path` was quantized, read off the shapes of its parts.

    The same inference as mlx-lm's `infer_quant_config`, from headers: affine keeps its scales as
    floats; each other mode has one pair of bits and group size.

    Raises:
        TensorError: if no quantization gives these shapes.
    """
    weight, scales = tensors[f"{path}.weight"], tensors[f"{path}.scales"]
    groups = scales.shape[-1] if scales.shape else 0
    columns = weight.shape[-1] if weight.shape else 0
    group_size, bits = in_dims // max(1, groups), columns * 32 // in_dims
    if scales.dtype in FLOATS and bits in (2, 3, 4, 5, 6, 8) and group_size in (16, 32, 64, 128):
        return {"group_size": group_size, "bits": bits, "mode": "affine"}
    modes = {(16, 4): "nvfp4", (32, 4): "mxfp4", (32, 8): "mxfp8"}
    if scales.dtype == "U8" and (group_size, bits) in modes:
        return {"group_size": group_size, "bits": bits, "mode": modes[group_size, bits]}
    raise TensorError(
        f"{path} in {weight.file.name} is packed in a way MLX does not know: weight "
        f"{list(weight.shape)} {weight.dtype}, scales {list(scales.shape)} {scales.dtype}, for "
        f"{in_dims} inputs."
    )


def load_model(checkpoint: Checkpoint, *, lazy: bool = False) -> Any:
    """Build the model of a checked checkpoint and read its weights."""
    from .model import Model

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
    if not lazy:
        mx.eval(model.parameters())
    return model


def load_tokenizer(folder: Path) -> Any:
    """mlx-lm's `TokenizerWrapper` for a checkpoint folder.

    Its end tokens are those of config.json and generation_config.json, and `<|endoftext|>` where
    the vocabulary has it: Qwen3's base configuration ends on it too, which the published Orthrus
    configurations leave out.
    """
    from mlx_lm import tokenizer_utils

    if not (folder / "tokenizer.json").exists():
        raise IncompleteCheckpointError(
            f"{folder} has no tokenizer.json. Copy it from the base model's folder."
        )
    try:
        tokenizer = tokenizer_utils.load(
            folder, {"trust_remote_code": False, "local_files_only": True}
        )
    except (ValueError, KeyError, TypeError, OSError, AttributeError, ImportError) as e:
        raise CheckpointError(f"The tokenizer in {folder} cannot be loaded: {_brief(e)}.") from e
    for ids in (_eos_ids(folder / "config.json"), _eos_ids(folder / "generation_config.json")):
        for token in ids:
            tokenizer.add_eos_token(token)
    if "<|endoftext|>" in tokenizer.get_vocab():
        tokenizer.add_eos_token("<|endoftext|>")
    return tokenizer


def _eos_ids(path: Path) -> list[str]:
    value = read_json(path).get("eos_token_id") if path.exists() else None
    ids = value if isinstance(value, list) else [value]
    return [str(i) for i in ids if isinstance(i, int) and not isinstance(i, bool)]


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _brief(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
