"""Tokens per forward of two-pass and one-pass cycles, by kind of text and by layout of the rows.

The AR view answers each prompt once, greedily, and the diffusion view drafts blocks of several
lengths after every token of the answer. Policies are replayed on this table of drafts, without the
model. A pass counts as one forward whatever its rows.

    python benchmarks/layouts.py demo [--per-kind 4] [--table demo.json]
    python benchmarks/layouts.py FOLDER=PROMPTS.json

PROMPTS is a JSON list of {"kind", "prompt": ids}; without it, held-out questions of the demo are
asked. With --table the drafts are kept in that file, and read from it if it is there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.simulate import cycles
from orthrus_mlx.decoding.plan import Policy
from orthrus_mlx.decoding.scheduler import Fixed

LENGTHS = (3, 4, 5, 6, 8, 9, 11, 13, 16, 19, 22, 26, 30, 31, 32)  # of blocks, anchor included
BLOCKS = (1, 2)  # of a one-pass forward
AT_ONCE = 8  # anchors in one pass


@dataclass(frozen=True)
class Answer:
    """One answer and the drafts at each of its positions.

    Attributes:
        kind: of the prompt.
        tokens: the answer's ids.
        drafts: by block length, then by number of tokens written: the guesses for the positions
            that follow.
        probabilities: of these guesses, in the same order.
    """

    kind: str
    tokens: list[int]
    drafts: dict[int, list[list[int]]]
    probabilities: dict[int, list[list[float]]]

    def chances(self, anchor: int, length: int) -> list[float]:
        """As `simulate.Text.chances`."""
        if anchor >= len(self.tokens):
            return [0.0] * length
        return self.probabilities[self._made_with(length)][anchor][:length]

    def guesses(self, anchor: int, length: int) -> list[bool]:
        """As `simulate.Text.guesses`."""
        places = self.tokens[anchor : anchor + length]
        places += [-1] * (length - len(places))  # past the end every guess is wrong
        if anchor >= len(self.tokens):
            return [False] * length
        # Only an answer's last block has another length than the policy's.
        drafts = self.drafts[self._made_with(length)][anchor][:length]
        return [a == b for a, b in zip(places, drafts, strict=True)]

    def _made_with(self, length: int) -> int:
        return min(n for n in self.drafts if n >= length)


def read_answer(model: Any, kind: str, prompt: list[int], ends: Any, limit: int) -> Answer:
    """Answer one prompt with the AR view, and draft at each position with the diffusion view."""
    import mlx.core as mx

    from orthrus_mlx import mlx_generate
    from orthrus_mlx.decoding.cache import trim
    from orthrus_mlx.rows import Rows, Segment

    tokens = list(mlx_generate(model, prompt, ends, limit, mode="ar"))
    block_size, mask = model.config.block_size, model.config.mask_token_id
    lengths = [n for n in LENGTHS if n < block_size] + [block_size]
    drafts: dict[int, list[list[int]]] = {length: [] for length in lengths}
    chances: dict[int, list[list[float]]] = {length: [] for length in lengths}
    cache, start = model.make_cache(), len(prompt) - 1
    if start:
        model.forward(Rows.verify(mx.array(prompt[:-1]), cache))
    text = prompt[-1:] + tokens[:-1]
    for place in range(0, len(text), AT_ONCE):
        anchors = text[place : place + AT_ONCE]
        for length in lengths:
            trim(cache, start + place)
            blocks = mx.array([[anchor, *[mask] * (length - 1)] for anchor in anchors])
            segment = Segment(cache, mx.array(anchors), blocks, tuple(range(len(anchors))))
            _, logits = model.forward(Rows([segment]))
            guesses: Any = mx.argmax(logits, axis=-1).reshape(blocks.shape).tolist()
            # The last row of a block of the trained length is untrained.
            drafts[length] += [[*g[: block_size - 1], -1][:length] for g in guesses]
            sure: Any = mx.softmax(logits, axis=-1, precise=True).max(axis=-1)
            chances[length] += sure.reshape(blocks.shape).tolist()
    return Answer(kind, tokens, drafts, chances)


def forwards(policy: Policy, answer: Answer) -> int:
    """Passes over the layers that `policy` takes for an answer."""
    passes = cycles(Fixed(policy), answer, len(answer.tokens), max(answer.drafts))
    return sum(2 if plan.draft_rows else 1 for plan, _, _ in passes)


def two_pass(lengths: list[int]) -> Iterator[Policy]:
    """The two-pass policies, one per block length."""
    for length in lengths:
        yield Policy("two-pass", length - 1)


def one_pass(rows: int, lengths: list[int]) -> Iterator[Policy]:
    """The one-pass and alternating policies of at most `rows` rows a pass."""
    for length in lengths:
        left = min(length, lengths[-1] - 1) - 1  # drafts
        if length < rows:
            yield Policy("alternating", left, length, 1)
        for blocks in BLOCKS:
            for n_drafts in range(1, min(left, rows - blocks * length - 1) + 1):
                yield Policy("one-pass", n_drafts, length, blocks)


def best(policies: Iterator[Policy], answers: list[Answer]) -> tuple[Policy, int]:
    """The policy with the fewest passes over all answers, and their number."""
    counts = {policy: sum(forwards(policy, a) for a in answers) for policy in policies}
    return min(counts.items(), key=lambda item: item[1])


def show(policy: Policy) -> str:
    """A policy as a cell of the table."""
    if policy.kind == "two-pass":
        return f"{policy.n_drafts} drafts"
    if policy.kind == "alternating":
        return f"1+{policy.block_rows}, {policy.n_drafts + 1}"
    return f"{policy.n_drafts + 1}+{policy.blocks}x{policy.block_rows}"


def report(answers: list[Answer], budgets: tuple[int, ...] = (32, 64)) -> None:
    """Print the table: each kind at its own best layout, then all of them together."""
    lengths = sorted(answers[0].drafts)
    by_kind: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_kind[answer.kind].append(answer)
    columns: dict[str, Callable[[], Iterator[Policy]]]
    columns = {"two-pass": partial(two_pass, lengths)}
    for rows in budgets:
        columns[f"one-pass, {rows} rows"] = partial(one_pass, rows, lengths)
    titles = [title for name in columns for title in (name, "layout")]
    print(f"| kind | tokens | {' | '.join(titles)} |")
    print("|---|---:|" + "---:|---|" * len(columns))
    totals: dict[str, int] = defaultdict(int)
    tokens = sum(len(a.tokens) for a in answers)
    worst = dict.fromkeys(columns, float("inf"))
    for kind, some in sorted(by_kind.items()):
        n = sum(len(a.tokens) for a in some)
        cells, reference = [], 0
        for name, policies in columns.items():
            policy, passes = best(policies(), some)
            reference = reference or passes
            worst[name] = min(worst[name], reference / passes)
            totals[name] += passes
            cells.append(f"{n / passes:.2f} | {show(policy)}")
        print(f"| {kind} | {n} | {' | '.join(cells)} |")
    print(f"| **all** | {tokens} | {' | '.join(f'{tokens / t:.2f} |' for t in totals.values())} |")
    for name, passes in totals.items():
        if name != "two-pass":
            over = totals["two-pass"] / passes
            print(f"\n{name}: {over:.2f} of two-pass overall, {worst[name]:.2f} on the worst kind.")


def main() -> None:
    """Make or read the table of drafts, replay, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", metavar="MODEL[=PROMPTS]", help="a folder, a Hub id or 'demo'")
    parser.add_argument("--per-kind", type=int, default=4, help="questions of each kind")
    parser.add_argument("--max-tokens", type=int, default=320, help="the longest answer")
    parser.add_argument("--table", type=Path, help="keep the drafts in this file")
    args = parser.parse_args()
    from rich.progress import track

    from orthrus_mlx import load

    name, _, prompts = args.model.partition("=")
    model, tokenizer = load(name)
    if args.table and args.table.exists():
        answers = [read_entry(entry) for entry in json.loads(args.table.read_text())]
    else:
        cases = read_cases(prompts, tokenizer, args.per_kind)
        ends = tokenizer.eos_token_ids
        answers = [
            read_answer(model, kind, ids, ends, args.max_tokens)
            for kind, ids in track(cases, description="Drafting", transient=True)
        ]
        if args.table:
            args.table.write_text(json.dumps([vars(answer) for answer in answers]))
    report(answers)


def read_entry(entry: dict[str, Any]) -> Answer:
    """An answer from the file of a table, whose keys are strings."""
    if not isinstance(entry["drafts"], dict) or "probabilities" not in entry:
        sys.exit("This table was written by an older version: delete it, and it is made anew.")
    drafts = {int(length): guesses for length, guesses in entry["drafts"].items()}
    chances = {int(length): sure for length, sure in entry["probabilities"].items()}
    return Answer(entry["kind"], entry["tokens"], drafts, chances)


def read_cases(prompts: str, tokenizer: Any, per_kind: int) -> list[tuple[str, list[int]]]:
    """Kinds and prompts, from a file or from the demo's held-out questions."""
    if prompts:
        return [(case["kind"], case["prompt"]) for case in json.loads(Path(prompts).read_text())]
    from orthrus_mlx.chat.prompt import encode_chat
    from recipes.demo.corpus import evaluation

    questions = evaluation(per_kind, seed=1)
    return [(q.kind, encode_chat(tokenizer, q.prompt)[0]) for q in questions]


if __name__ == "__main__":
    main()
