"""Damage the demo checkpoint in many ways, and see that it loads or is refused in plain words.

    make fuzz-checkpoints
    python benchmarks/fuzz_checkpoints.py --count 50 --seed 7
    python benchmarks/fuzz_checkpoints.py --only 1234        one case, with its traceback

Each case is a copy of the demo with one to three changes, made from the seed and its number. A
process of its own describes it, loads it and answers a question in AR and in parallel mode; it is
ended after `SECONDS`, or once it has grown by `BYTES`. A case passes that loads and gives the same
ids in both modes, or ends in an `OrthrusError`.
"""

from __future__ import annotations

import argparse
import codecs
import collections
import json
import multiprocessing
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orthrus_mlx import OrthrusError, load, mlx_generate
from orthrus_mlx.checkpoint.info import describe
from orthrus_mlx.checkpoint.read import resolve
from orthrus_mlx.session import encode_chat

# What the process that all others are forked from has at hand, so that no case waits for imports.
IMPORTED = [
    "orthrus_mlx.checkpoint.info",
    "orthrus_mlx.cuda",
    "mlx_lm.tokenizer_utils",
    "transformers.models.qwen2.tokenization_qwen2",
    "transformers.models.qwen3.configuration_qwen3",
]
SECONDS, BYTES = 20.0, 2e9
QUESTION, TOKENS = "If a rectangle has length 12 and width 7, what is its area?", 12
DEMO = resolve("demo")

JSON_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
# Files that a checkpoint may have and the demo has not, with what they might say.
EXTRA_FILES = {
    "special_tokens_map.json": {"eos_token": "<|im_end|>", "pad_token": {"content": "x"}},
    "added_tokens.json": {"<|im_end|>": 2, "new": 1000},
    "vocab.json": {"a": 0, "b": 1},
    "model.safetensors.index.json": {"weight_map": {"model.norm.weight": "model.safetensors"}},
}
TEXT_FILES = (*JSON_FILES, *EXTRA_FILES, "chat_template.jinja", "merges.txt", "README.md")
# Fields that checkpoints have, though the demo does not.
CONFIG_FIELDS = {
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
    "rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0},
    "quantization": {"group_size": 64, "bits": 4},
    "layer_types": ["full_attention"] * 6,
    "max_window_layers": 6,
    "tokenizer_class": "Qwen2Tokenizer",
    "auto_map": {"AutoConfig": "configuration_orthrus.OrthrusConfig"},
    "bos_token": {"__type": "AddedToken", "content": "<s>"},
    "added_tokens_decoder": {"5": {"content": "<|x|>", "special": True}},
    "additional_special_tokens": ["<|x|>"],
    "chat_template": "{{ messages }}",
    "chat_template_type": "deepseek_v32",
    "tool_parser_type": "json_tools",
    "max_length": 7,
}
DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 64, 1024, 0.5, -0.0, 1e-320, 1e-38, 1e38, 1e308),
    *(10**400, 2**31, 2**32, 2**63, 2**64, -(2**63), float("nan"), float("inf"), float("-inf")),
    *(
        "",
        "x",
        "qwen3",
        "<|im_end|>",
        "0",
        "\x00",
        "\ud800",
        "\u2028",
        "../../etc/passwd",
        "a" * 10**6,
    ),
    *([], {}, [[]], [0], [None], {"": ""}, {"a": [1]}, [2] * 1000, ["x"] * 1000, DEEP),
)
TEMPLATES = (
    "{{ 1 / 0 }}",
    "{% for",
    "{{ messages.x.y.z }}",
    "{% for m in messages %}{{ m.content * 1000 }}{% endfor %}",
    "{{ raise_exception('no') }}",
    "{{ ''.__class__.__mro__ }}",
    "{% include 'config.json' %}",
    "\ufeff{{ messages[0].content }}",
    "",
)
HEADER_TYPES = ("F32", "BF16", "F16", "U8", "I64", "F64", "BOOL", "F8_E4M3", "?", None, 7)

Change = Callable[[random.Random, Path], str]


def change_value(rng: random.Random, folder: Path) -> str:
    """Replace, remove or add one value of a JSON file."""
    name = rng.choice((*JSON_FILES, "config.json", "tokenizer_config.json"))
    path = folder / name
    content = json.loads(path.read_text())
    at, key = _pick(rng, content)
    what = rng.random()
    value: Any = None
    if what < 0.15:
        del at[key]
        said = f"without {key!r}"
    elif what < 0.3 and isinstance(content, dict):
        key, value = rng.choice(sorted(CONFIG_FIELDS.items()))
        added = {key: json.loads(json.dumps(value))}
        if rng.random() < 0.5:
            at, inner = _pick(rng, added)
            at[inner] = rng.choice(VALUES)
        content |= added
        said = f"with {key!r} {str(value)[:60]!r}"
    else:
        value = rng.choice(VALUES)
        at[key] = value
        said = f"{key!r} = {str(value)[:40]!r}"
    path.write_text(json.dumps(content))
    return f"{name}: {said}"


def _pick(rng: random.Random, value: Any) -> tuple[Any, Any]:
    """A place in a JSON value, as container and key: high up as often as deep down."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = rng.choice(keys)
    inner = value[key]
    if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
        return _pick(rng, inner)
    return value, key


def change_bytes(rng: random.Random, folder: Path) -> str:
    """Change, cut or add bytes of a text file."""
    path = _present(rng, folder)
    content = bytearray(path.read_bytes())
    kind = rng.choice(("flip", "cut", "insert", "repeat"))
    at = rng.randrange(len(content) + 1)
    if kind == "flip" and content:
        for _ in range(rng.randint(1, 8)):
            content[rng.randrange(len(content))] = rng.randrange(256)
    elif kind == "cut":
        del content[at:]
    elif kind == "insert":
        some = (b"\x00", b"\xff", b"{", b"]", b'"', codecs.BOM_UTF8, b"[" * 10**5, b"9" * 5000)
        content[at:at] = rng.choice(some)
    else:
        content = content * 2
    path.write_bytes(content)
    return f"{path.name}: {kind} at {at}"


def change_file(rng: random.Random, folder: Path) -> str:
    """Put something else in the place of a file, or add one."""
    name = rng.choice((*TEXT_FILES, "model.safetensors"))
    path = folder / name
    path.unlink(missing_ok=True)
    kinds: dict[str, Callable[[], Any]] = {
        "gone": lambda: None,
        "empty": path.touch,
        "pipe": lambda: os.mkfifo(path),
        "endless": lambda: path.symlink_to("/dev/zero"),
        "elsewhere": lambda: path.symlink_to("/etc/passwd"),
        "circle": lambda: path.symlink_to(path),
        "folder": path.mkdir,
        "large": lambda: (path.touch(), os.truncate(path, 3 << 30)),
        "utf16": lambda: path.write_text('{"a": 1}', encoding="utf-16"),
        "latin1": lambda: path.write_bytes(b'{"a": "\xe9"}'),
        "deep": lambda: path.write_text("[" * 10**6),
        "array": lambda: path.write_text("[" + "[]," * 10**6 + "[]]"),
        "object": lambda: path.write_text(json.dumps({str(i): i for i in range(200_000)})),
        "string": lambda: path.write_text(json.dumps("x" * 7_000_000)),
        "lines": lambda: path.write_text("a b\n" * 10**6),
    }
    kind = rng.choice(sorted(kinds))
    kinds[kind]()
    return f"{name}: {kind}"


def add_file(rng: random.Random, folder: Path) -> str:
    """Add a file that the demo does not have, sound or with one other value."""
    name, content = rng.choice(sorted(EXTRA_FILES.items()))
    content = json.loads(json.dumps(content))
    if rng.random() < 0.7:
        at, key = _pick(rng, content)
        at[key] = rng.choice(VALUES)
    (folder / name).write_text(json.dumps(content))
    return f"{name}: added"


def change_template(rng: random.Random, folder: Path) -> str:
    """Another chat template."""
    number = rng.randrange(len(TEMPLATES))
    (folder / "chat_template.jinja").write_text(TEMPLATES[number])
    return f"chat_template.jinja: template {number}"


def change_header(rng: random.Random, folder: Path) -> str:
    """Another type, shape, place or name for one tensor, or another size of the header."""
    path = folder / "model.safetensors"
    if not path.is_file() or path.stat().st_size < 8:
        return "no weights"
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        text, data = (file.read(size), file.read()) if size < 1 << 20 else (b"{}", b"")
    try:
        header = json.loads(text)
    except ValueError:
        return "no header"
    kind = rng.choice(("dtype", "shape", "offsets", "gone", "added", "renamed", "size", "many"))
    name = rng.choice([n for n in header if n != "__metadata__"] or ["x"])
    entry = header.get(name, {})
    if kind == "dtype":
        entry["dtype"] = rng.choice(HEADER_TYPES)
    elif kind == "shape":
        entry["shape"] = rng.choice(
            [[], [0], [1], [2**40, 2**40], [-1], ["x"], None, [1.5], [1] * 99]
        )
    elif kind == "offsets":
        entry["data_offsets"] = rng.choice(
            [[0, 0], [8, 4], [0, 2**63], [-1, 1], [], None, [0, 10**30]]
        )
    elif kind == "gone":
        header.pop(name, None)
    elif kind == "added":
        header["model.layers.9.x.weight"] = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    elif kind == "renamed":
        header[rng.choice(("", "x" * 10**5, "../x", name + ".scales", "\x1b[2J"))] = header.pop(
            name, {}
        )
    elif kind == "many":
        more = {
            f"t{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(300_000)
        }
        header |= more
    text = json.dumps(header).encode()
    size = rng.choice((0, 2**63, 2**64 - 1, len(text) - 1, 10**8)) if kind == "size" else len(text)
    path.write_bytes(struct.pack("<Q", size) + text + data)
    return f"model.safetensors: {kind} of {name[:40]}"


def change_weights(rng: random.Random, folder: Path) -> str:
    """Change or cut bytes of the weights."""
    path = folder / "model.safetensors"
    if not path.is_file():
        return "no weights"
    content = bytearray(path.read_bytes())
    if rng.random() < 0.2:
        del content[rng.randrange(len(content) + 1) :]
        kind = "cut"
    else:
        for _ in range(rng.choice((1, 10, 1000))):
            if content:
                content[rng.randrange(len(content))] = rng.randrange(256)
        kind = "flip"
    path.write_bytes(content)
    return f"model.safetensors: {kind}"


def _present(rng: random.Random, folder: Path) -> Path:
    names = [name for name in TEXT_FILES if (folder / name).is_file()]
    small = [name for name in names if (folder / name).stat().st_size < 1 << 26]
    return folder / rng.choice(small or ["config.json"])


# The likelier ones stand several times.
CHANGES: tuple[Change, ...] = (
    *(change_value,) * 8,
    *(change_bytes,) * 4,
    *(change_file,) * 3,
    *(add_file,) * 2,
    *(change_header,) * 3,
    change_weights,
    change_template,
)


def damage(number: int, seed: int, folder: Path) -> str:
    """Make the folder of a case; what was changed, in words."""
    rng = random.Random(f"{seed}/{number}")
    shutil.copytree(DEMO, folder)
    said = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        try:
            said.append(rng.choice(CHANGES)(rng, folder))
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as e:
            said.append(f"(no change: {type(e).__name__})")  # an earlier one is in the way
    return "; ".join(said)


def attempt(folder: Path) -> tuple[str, str]:
    """Describe, load and answer: how that ended ("loaded", "refused", "differs", "traceback")."""
    try:
        describe(folder)
        model, tokenizer = load(folder)
        messages = [{"role": "user", "content": QUESTION}]
        ids = encode_chat(tokenizer, messages)[0] if tokenizer.has_chat_template else [5, 6, 7]
        answers = [
            list(mlx_generate(model, ids, tokenizer.eos_token_ids, TOKENS, mode=mode))
            for mode in ("ar", "parallel")
        ]
        tokenizer.decode(answers[0])
    except OrthrusError as e:
        return "refused", f"{type(e).__name__}: {str(e)[:300]}"
    except BaseException as e:  # a panic of `tokenizers` is no Exception
        return "traceback", f"{type(e).__name__}: {str(e)[:300]}\n{traceback.format_exc()[-3000:]}"
    return ("loaded", "") if answers[0] == answers[1] else ("differs", str(answers))


def _attempt_to(pipe: Any, folder: Path) -> None:
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    before = _peak()
    pipe.send((*attempt(folder), _peak() - before))


def _peak() -> int:
    """The most bytes that this process had in memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def _resident(pid: int) -> int:
    """The bytes that a process has in memory now."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:  # no Linux, or it has just ended
        found = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True)
        return int(found.stdout or 0) * 1024


def watched(folder: Path, context: Any) -> tuple[str, str, float, float]:
    """The outcome of `attempt` in a process of its own, seconds, and bytes that it grew by."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_attempt_to, args=(sender, folder))
    start = time.perf_counter()
    process.start()
    sender.close()
    assert process.pid is not None
    before = _resident(process.pid)
    grown: float = 0
    while not receiver.poll(0.05):
        grown = _resident(process.pid) - before
        if grown > BYTES or time.perf_counter() - start > SECONDS:
            end, detail = "memory" if grown > BYTES else "hang", ""
            break
    else:
        try:
            end, detail, grown = receiver.recv()
        except EOFError:
            end, detail = "traceback", "the process died"
    process.kill()
    process.join()
    if grown > BYTES:
        end = "memory"
    return end, detail, time.perf_counter() - start, grown


def main() -> None:
    """Run the cases and count how they ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER")
    args = parser.parse_args()
    numbers = range(args.first, args.first + args.count) if args.only is None else [args.only]

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    ends: collections.Counter[str] = collections.Counter()
    slowest = largest = 0.0
    for number in numbers:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
            folder = Path(place) / "checkpoint"
            said = damage(number, args.seed, folder)
            end, detail, seconds, grown = watched(folder, context)
        ends[end] += 1
        slowest, largest = max(slowest, seconds), max(largest, grown)
        bad = end not in ("loaded", "refused")
        if bad or args.only is not None:
            print(f"{number}: {end} after {seconds:.1f} s, {grown / 1e6:.0f} MB: {said}\n{detail}")
        if number % 100 == 99:
            print(f"{number + 1}: {dict(ends)}", flush=True)
    print(f"{dict(ends)}; slowest {slowest:.1f} s, largest {largest / 1e6:.0f} MB")
    raise SystemExit(bool(ends.keys() - {"loaded", "refused"}))


if __name__ == "__main__":
    main()
