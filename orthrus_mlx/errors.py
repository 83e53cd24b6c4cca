"""The exception tree: everything this package raises on bad input is an `OrthrusError`.

OrthrusError
├── CheckpointError          a checkpoint cannot be used
│   ├── CheckpointNotFoundError   no such folder or Hub id, or no network to fetch it
│   ├── IncompleteCheckpointError a file that should be there is missing or cut short
│   ├── NotOrthrusError           a language model without a diffusion view
│   ├── ConfigError               config.json is unreadable or names something unsupported
│   ├── TensorError               a tensor is missing, unexpected, or of the wrong shape or type
│   └── UnsafeCheckpointError     pickle files, or names that leave the folder
├── GenerationError          a request that cannot be decoded (also a ValueError)
│   ├── PromptError               an empty prompt, or ids outside the vocabulary
│   ├── ContextLengthError        prompt or answer would pass the context limit
│   ├── SamplingError             temperature, top-p, seed and the like out of range
│   ├── ConstraintError           a schema, regex or grammar that cannot be used, or not be met
│   ├── ChatTemplateError         the tokenizer has no chat template, or it refused the messages
│   ├── LogitsError               logits that are no numbers, from the weights or a processor
│   ├── NumericsError             exact numerics asked for where no usable row count exists
│   └── RequestError              a request to the server that cannot be honoured as it stands
├── ServerError              a server cannot start as asked, or its engine has ended
├── ConversionError          a conversion that cannot be made as asked (also a ValueError)
├── DistributedError         several machines cannot hold or run a model together
├── OutputError              a folder or file cannot be written
├── DataError                training data is missing or malformed
└── TrainingError            a training run cannot start, resume or go on

Each message says what is wrong, where, and what to do about it. What it quotes may come from a file
and be of any length, so a long one loses its middle.
"""

LONGEST = 2000  # characters of a message


class OrthrusError(Exception):
    """Base of every error raised on purpose by orthrus-mlx."""

    def __init__(self, message: object = "", *more: object):
        text = str(message)
        if len(text) > LONGEST:
            message = f"{text[: LONGEST * 3 // 4]} [...] {text[-LONGEST // 4 :]}"
        super().__init__(message, *more)


class CheckpointError(OrthrusError):
    """A checkpoint cannot be used."""


class CheckpointNotFoundError(CheckpointError):
    """No such folder or Hub id, or no network to fetch it."""


class IncompleteCheckpointError(CheckpointError):
    """A file that the checkpoint should hold is missing, cut short or corrupt."""


class NotOrthrusError(CheckpointError):
    """The checkpoint is a language model without a diffusion view."""


class ConfigError(CheckpointError):
    """`config.json` is unreadable or names something unsupported."""


class TensorError(CheckpointError):
    """A tensor is missing, unexpected, or of the wrong shape or type."""


class UnsafeCheckpointError(CheckpointError):
    """The checkpoint would need code or pickle to load, or names files outside its folder."""


class GenerationError(OrthrusError, ValueError):
    """A request that cannot be decoded."""


class PromptError(GenerationError):
    """The prompt is empty or holds ids outside the vocabulary."""


class ContextLengthError(GenerationError):
    """The prompt, or prompt plus answer, would pass the model's context limit.

    Attributes:
        tokens: ids that the prompt has.
        limit: ids that it may have.
    """

    def __init__(self, message: object = "", tokens: int = 0, limit: int = 0):
        super().__init__(message)
        self.tokens, self.limit = tokens, limit


class SamplingError(GenerationError):
    """A decoding or sampling parameter is out of range."""


class ConstraintError(GenerationError):
    """A schema, regex or grammar cannot be used, or the model's tokens cannot meet it."""


class ChatTemplateError(GenerationError):
    """The tokenizer has no chat template, or the template refused the messages."""


class LogitsError(GenerationError):
    """The model, or a logits processor, gave logits that no token can be chosen from."""


class NumericsError(GenerationError):
    """Exact numerics were asked for where no usable row count exists."""


class RequestError(GenerationError):
    """A request to the server that cannot be honoured as it stands.

    Attributes:
        param: the field that is to blame; None for the request as a whole.
        status: HTTP's status code.
        code: a word for programs; None for none.
    """

    def __init__(
        self,
        message: object = "",
        param: str | None = None,
        status: int = 400,
        code: str | None = None,
    ):
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


class ServerError(OrthrusError):
    """A server cannot start as asked, or its engine has ended."""


class ConversionError(OrthrusError, ValueError):
    """The options of a conversion contradict each other or do not suit the checkpoint."""


class DistributedError(OrthrusError):
    """Several machines cannot hold or run a model together."""


class OutputError(OrthrusError):
    """A folder or file cannot be written."""


class DataError(OrthrusError):
    """Training data is missing or malformed."""


class TrainingError(OrthrusError):
    """A training run cannot start, resume or go on."""


def brief(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
