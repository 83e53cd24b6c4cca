"""The model card (README.md) of a converted checkpoint."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from ..checkpoint.config import Quantization
from ..checkpoint.contents import Checkpoint
from ..checkpoint.hub_names import parse
from ..errors import CheckpointError
from ..files import part_bytes, read_bytes
from .options import Options

CARRIED_FIELDS = ("license", "license_name", "license_link", "language", "base_model")

TEXT = """\
# {name}

An [Orthrus](https://arxiv.org/abs/2605.12825) checkpoint{origin} in MLX's layout, converted by
orthrus-mlx {version}.

- Autoregressive (AR) view, in `model*.safetensors`: {ar}.
- Diffusion view, in `orthrus_diff.safetensors`: {diffusion}. It drafts up to {drafts} tokens
  at once and never changes what the model says: every token is the AR view's own choice.

## Use with orthrus-mlx

```bash
orthrus-mlx chat --model {quoted}
```

```python
from orthrus_mlx import load, stream_generate

model, tokenizer = load("{name}")
messages = [{{"role": "user", "content": "Hello!"}}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
for response in stream_generate(model, tokenizer, prompt, max_tokens=256):
    print(response.text, end="", flush=True)
```

## Use with stock mlx-lm

mlx-lm does not read the diffusion view and sees a plain Qwen3: the same model, one token at a
time.

```bash
mlx_lm.chat --model {quoted}
```

```python
from mlx_lm import generate, load

model, tokenizer = load("{name}")
messages = [{{"role": "user", "content": "Hello!"}}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
print(generate(model, tokenizer, prompt=prompt))
```
"""


def model_card(checkpoint: Checkpoint, source: str, name: str, options: Options) -> str:
    """The model card of a checkpoint named `name`, converted from `source`."""
    from huggingface_hub import ModelCardData

    from .. import __version__

    fields = _source_fields(checkpoint)
    tags = ["mlx", "orthrus"]
    if options.ar is not None:
        tags.append(f"{options.ar.bits}-bit")
    origin = ""
    if not Path(source).is_dir() and (base := parse(source)):
        fields["base_model"] = base.repo_id
        origin = f", [{base.repo_id}]({base.url}),"
    data = ModelCardData(library_name="mlx", pipeline_tag="text-generation", tags=tags, **fields)
    text = TEXT.format(
        name=name,
        quoted=shlex.quote(name),
        origin=origin,
        version=__version__,
        ar=_words(options.ar, options.dtype),
        diffusion=_words(options.diffusion, options.dtype),
        drafts=checkpoint.config.block_size - 1,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def _source_fields(checkpoint: Checkpoint) -> dict[str, Any]:
    """Licence, language and base model as the source's own card gives them."""
    from huggingface_hub import ModelCard

    path = checkpoint.folder / "README.md"
    if not os.path.lexists(path):
        return {}
    content = read_bytes(path, CheckpointError, part_bytes(path), checkpoint.folder)
    try:
        data = ModelCard(content.decode("utf-8-sig"), ignore_metadata_errors=True).data
    except Exception:  # one that only its author can read
        return {}
    values = {name: data.get(name) for name in CARRIED_FIELDS}
    return {name: value for name, value in values.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return all(isinstance(text, str) for text in texts)


def _words(packing: Quantization | None, dtype: str | None) -> str:
    if packing is None:
        return dtype or "as in the original"
    if packing.mode != "affine":
        return packing.mode
    return f"{packing.bits} bits, in groups of {packing.group_size}"
