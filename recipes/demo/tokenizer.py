"""Train the demo's byte-level BPE tokenizer and write its files: Qwen's pieces, 1,020 tokens."""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    trainers,
)
from tokenizers.models import BPE

from .corpus import Message

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END_OF_TEXT, START, END)
EOS_ID = SPECIAL.index(END)
# As in the public checkpoints, the mask is the first row of the embedding that no token uses.
TOKENS = 1020
MASK_ID = TOKENS
VOCABULARY = 1024
TEMPLATE = Path(__file__).with_name("chat_template.jinja")
FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
# How Qwen cuts text before the merges: words, single digits, signs, line ends, spaces.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def render(messages: Iterable[Message]) -> str:
    """The text of a finished conversation, as the chat template writes it."""
    return "".join(f"{START}{m['role']}\n{m['content']}{END}\n" for m in messages)


def _texts(conversations: Iterable[list[Message]]) -> Iterator[str]:
    for messages in conversations:
        for message in messages:
            # The role has a line of its own: let "user\n" be learned like any text.
            yield f"{message['role']}\n{message['content']}"


def train(conversations: Iterable[list[Message]]) -> Tokenizer:
    """Learn the merges from conversations."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(conversations), trainer)
    if tokenizer.get_vocab_size() != TOKENS:
        raise ValueError(f"the corpus gave {tokenizer.get_vocab_size()} tokens, {TOKENS} wanted")
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer's files next to a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    shutil.copyfile(TEMPLATE, folder / "chat_template.jinja")
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": END,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "extra_special_tokens": [START, END],
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        "errors": "replace",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def load(folder: Path) -> Tokenizer:
    """The tokenizer saved in a folder, without any wrapper."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))
