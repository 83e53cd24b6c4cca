"""Other implementations of AR decoding, to check this package's AR mode against.

Both decode one token at a time on the weights of a loaded model. They choose tokens by this
package's rule, so that sampled answers can be compared too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol

import mlx.core as mx
from mlx.utils import tree_flatten

from ..checkpoint.plain import plain_qwen3
from ..decoding.consensus import Sampling, choose
from ..errors import OrthrusError
from ..model import is_diffusion
from .compare import Answer

REFERENCES = ("mlx-lm", "torch")

# By how many units in the last place of the largest logit two correct implementations may differ.
# In 16 bits the last rounding hides most earlier errors; in float32 nothing hides them.
UNITS = {mx.bfloat16: 4, mx.float16: 8, mx.float32: 512}
PRECISION = {mx.bfloat16: 2.0**-8, mx.float16: 2.0**-11, mx.float32: 2.0**-24}


class ReferenceDecoder(Protocol):
    """Another implementation of AR decoding."""

    name: str

    def begin(self, prompt: Sequence[int]) -> mx.array:
        """Read a prompt; return the logits [vocab_size] after it."""

    def step(self, token: int) -> mx.array:
        """Read one more token; return the logits [vocab_size] after it."""


def make_reference(name: str, model: Any) -> ReferenceDecoder:
    """The implementation `name`, of `REFERENCES`, on the weights of `model`.

    Raises:
        OrthrusError: if it is not installed or cannot run these weights.
    """
    return StockMlxLm(model) if name == "mlx-lm" else TorchTransformers(model)


def decode_with(
    reference: ReferenceDecoder,
    prompt: Sequence[int],
    ends: Collection[int],
    max_tokens: int,
    sampling: Sampling,
) -> Answer:
    """Answer one prompt with another implementation, one token at a time."""
    answer = Answer([])
    logits = reference.begin(prompt)
    while True:
        position = len(prompt) + len(answer.ids)
        token: Any = choose(logits[None], position, sampling).item()
        answer.ids.append(token)
        if len(answer.ids) == max_tokens or token in ends:
            return answer
        logits = reference.step(token)


def fair_bound(model: Any, row: mx.array) -> float:
    """How far another implementation's logits may differ from this `row` [vocab_size]."""
    dtype = model.model.norm.weight.dtype
    largest: Any = mx.abs(row.astype(mx.float32)).max().item()
    return UNITS[dtype] * 2 * PRECISION[dtype] * largest


class StockMlxLm:
    """mlx-lm's own Qwen3, holding the AR view's weights (no second copy of them)."""

    name = "mlx-lm"

    def __init__(self, model: Any):
        self.model: Any = plain_qwen3(model)
        self.cache: list[Any] = []

    def begin(self, prompt: Sequence[int]) -> mx.array:
        """Read a prompt as mlx-lm does: all but the last token in chunks, then that one alone."""
        from mlx_lm.models.cache import make_prompt_cache

        self.cache = make_prompt_cache(self.model)
        for start in range(0, len(prompt) - 1, 2048):
            chunk = list(prompt[start : min(start + 2048, len(prompt) - 1)])
            self.model(mx.array([chunk]), cache=self.cache)
            mx.eval([layer.state for layer in self.cache])
        return self.step(prompt[-1])

    def step(self, token: int) -> mx.array:
        """One forward of one row."""
        logits: mx.array = self.model(mx.array([[token]]), cache=self.cache)[0, -1]
        return logits


class TorchTransformers:
    """Hugging Face transformers' Qwen3 in torch, in the model's own dtype."""

    name = "torch"

    def __init__(self, model: Any):
        try:
            import torch
            from transformers import Qwen3Config, Qwen3ForCausalLM
        except ImportError as e:
            raise OrthrusError(
                f"Comparing with torch needs PyTorch and transformers beside this package ({e}). "
                "Install them with: pip install torch transformers"
            ) from e
        weights = dict(tree_flatten(model.parameters()))
        if any(name.endswith(".scales") for name in weights):
            raise OrthrusError(
                "torch cannot run MLX's quantized weights. Compare an unquantized checkpoint, or "
                "compare with mlx-lm, which runs them."
            )
        self.torch = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        raw = {k: v for k, v in model.config.raw.items() if k not in ("auto_map", "architectures")}
        config = Qwen3Config.from_dict(raw, attn_implementation="eager")
        with torch.device("meta"):  # no weights of its own
            qwen3: Any = Qwen3ForCausalLM(config)
        state = {name: self._tensor(a) for name, a in weights.items() if not is_diffusion(name)}
        if model.config.tie_word_embeddings:
            state["lm_head.weight"] = state["model.embed_tokens.weight"]
        qwen3.load_state_dict(state, strict=True, assign=True)
        # The rotary frequencies are no weights and would stay on the meta device.
        qwen3.model.rotary_emb = type(qwen3.model.rotary_emb)(config=config)
        self.model: Any = qwen3.to(self.device).eval()
        self.cache: Any = None

    def _tensor(self, array: mx.array) -> Any:
        import numpy as np

        if array.dtype == mx.bfloat16:  # which numpy does not have
            return self.torch.tensor(np.array(array.view(mx.int16))).view(self.torch.bfloat16)
        return self.torch.tensor(np.array(array))

    def begin(self, prompt: Sequence[int]) -> mx.array:
        """Read the prompt in one pass."""
        self.cache = None
        return self._read(list(prompt))

    def step(self, token: int) -> mx.array:
        """One forward of one row."""
        return self._read([token])

    def _read(self, ids: list[int]) -> mx.array:
        with self.torch.no_grad():
            rows = self.torch.tensor([ids], device=self.device)
            out = self.model(rows, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = out.past_key_values
        return mx.array(out.logits[0, -1].float().cpu().numpy())
