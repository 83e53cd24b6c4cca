"""Lossless parallel decoding for Orthrus dual-view checkpoints, in pure MLX."""

from . import _early as _early
from ._version import __version__
from .batches import BatchEngine, BatchResult, batch_generate
from .checkpoint.config import ModelConfig
from .checkpoint.load import load
from .checkpoint.load import load as load_model_and_tokenizer
from .decoding.consensus import Sampling
from .decoding.constraints import Choices, Grammar, JsonSchema, Regex, ToolCalls
from .decoding.options import GenerationOptions
from .decoding.stats import DecodeStats
from .errors import (
    ChatTemplateError,
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    ConstraintError,
    ContextLengthError,
    ConversionError,
    DataError,
    DistributedError,
    GenerationError,
    IncompleteCheckpointError,
    LogitsError,
    NotOrthrusError,
    NumericsError,
    OrthrusError,
    OutputError,
    PromptError,
    RequestError,
    SamplingError,
    ServerError,
    TensorError,
    TrainingError,
    UnsafeCheckpointError,
)
from .generate import (
    GenerationResponse,
    mlx_generate,
    prepare,
    stream_generate,
)

__all__ = [
    "BatchEngine",
    "BatchResult",
    "ChatTemplateError",
    "CheckpointError",
    "CheckpointNotFoundError",
    "Choices",
    "ConfigError",
    "ConstraintError",
    "ContextLengthError",
    "ConversionError",
    "DataError",
    "DecodeStats",
    "DistributedError",
    "GenerationError",
    "GenerationOptions",
    "GenerationResponse",
    "Grammar",
    "IncompleteCheckpointError",
    "JsonSchema",
    "LogitsError",
    "ModelConfig",
    "NotOrthrusError",
    "NumericsError",
    "OrthrusError",
    "OutputError",
    "PromptError",
    "Regex",
    "RequestError",
    "Sampling",
    "SamplingError",
    "ServerError",
    "TensorError",
    "ToolCalls",
    "TrainingError",
    "UnsafeCheckpointError",
    "__version__",
    "batch_generate",
    "load",
    "load_model_and_tokenizer",
    "mlx_generate",
    "prepare",
    "stream_generate",
]
