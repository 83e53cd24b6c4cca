"""Whole runs: what they write, how they resume, and that the view learns."""

import json
import os
import resource
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from orthrus_mlx import load
from orthrus_mlx.errors import ConfigError, DataError, OrthrusError, OutputError, TrainingError
from orthrus_mlx.model import is_diffusion
from orthrus_mlx.signals import ends_as_exception
from orthrus_mlx.training import TrainOptions, export, train
from orthrus_mlx.training.base import load_base
from orthrus_mlx.training.data import read_split
from orthrus_mlx.training.events import Event, Saved, Trained, silent
from orthrus_mlx.training.regenerate import _kept as kept_answers
from orthrus_mlx.training.run import Run, learning_rate
from orthrus_mlx.training.state import Workspace
from tests.helpers import random_weights, write_checkpoint

from .conftest import WORDS, base_config, chat, options, recite, tensors, write_jsonl


def same(a: mx.array, b: mx.array) -> bool:
    return a.dtype == b.dtype and np.array_equal(
        np.array(a.view(mx.uint8)), np.array(b.view(mx.uint8))
    )


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


# What is written


def test_the_checkpoint_holds_the_base_bit_for_bit_and_a_view(
    base_dir: Path, data_dir: Path, tmp_path: Path
) -> None:
    weights = {n: a.astype(mx.bfloat16) for n, a in tensors(base_dir).items()}
    mx.save_safetensors(str(base_dir / "model.safetensors"), weights)
    result = train(options(base_dir, data_dir, tmp_path / "out"))

    assert result.output == tmp_path / "out"
    assert not result.interrupted
    assert len(result.base_digest or "") == 64
    before, after = tensors(base_dir), tensors(tmp_path / "out")
    view = {name for name in after if is_diffusion(name)}
    assert after.keys() - view == before.keys()
    assert all(same(after[name], before[name]) for name in before)
    assert len(view) == 6 * 2
    assert all(after[name].dtype == mx.bfloat16 for name in view)
    moved = [n for n in view if not same(after[n], before[n.replace("_diff.", ".")])]
    assert len(moved) == len(view)  # they started as copies and were trained

    config = json.loads((tmp_path / "out" / "config.json").read_text())
    added = {"architectures": ["OrthrusLM"], "block_size": 4, "mask_token_id": len(WORDS)}
    assert config == {**json.loads((base_dir / "config.json").read_text()), **added}
    copied = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    copied |= {"generation_config.json"}
    assert files(tmp_path / "out") == {"config.json", "model.safetensors", *copied}
    for name in copied:
        assert (tmp_path / "out" / name).read_bytes() == (base_dir / name).read_bytes()
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"base", "out"}  # nothing beside it
    load(tmp_path / "out")


def test_a_large_checkpoint_is_sharded(
    base_dir: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orthrus_mlx.checkpoint.write.MAX_SHARD_GB", 0)  # a file for each tensor
    train(options(base_dir, data_dir, tmp_path / "out", iters=1))
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) == len(tensors(tmp_path / "out")) > 2
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors(tmp_path / "out").keys()
    load(tmp_path / "out")


@pytest.mark.parametrize("apart", [False, True])
def test_an_orthrus_checkpoint_is_trained_further(
    base_dir: Path, data_dir: Path, tmp_path: Path, apart: bool
) -> None:
    train(options(base_dir, data_dir, tmp_path / "one", iters=2))
    if apart:  # the layout that `orthrus-mlx convert` writes
        weights = tensors(tmp_path / "one")
        view = {name: weights.pop(name) for name in list(weights) if is_diffusion(name)}
        mx.save_safetensors(str(tmp_path / "one" / "orthrus_diff.safetensors"), view)
        mx.save_safetensors(str(tmp_path / "one" / "model.safetensors"), weights)
    again = options(tmp_path / "one", data_dir, tmp_path / "two", iters=1, learning_rate=1e-9)
    train(again.with_changes(block_size=None))
    assert "orthrus_diff.safetensors" not in files(tmp_path / "two")
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert json.loads((tmp_path / "two" / "config.json").read_text())["block_size"] == 4
    for name in one:  # it went on from the trained view, not from copies of the base
        assert np.allclose(np.array(one[name]), np.array(two[name]), atol=1e-7), name


# Resuming


def test_a_run_resumed_twice_ends_with_the_same_weights(
    base_dir: Path, data_dir: Path, tmp_path: Path
) -> None:
    through = options(base_dir, data_dir, tmp_path / "through", iters=9)
    whole = train(through)
    broken = through.with_changes(output=tmp_path / "broken", save_every=4)

    class CrashError(Exception):
        pass

    def crash(after: int, event: Event) -> None:
        if isinstance(event, Saved) and event.step == after:
            raise CrashError

    for stop in (4, 8):
        with pytest.raises(CrashError):
            train(broken, lambda event, stop=stop: crash(stop, event))  # type: ignore[misc]
        assert not broken.output.exists()
        broken = broken.with_changes(resume=True)
    last = train(broken)

    assert last.step == whole.step == 9
    wanted, got = tensors(whole.output), tensors(last.output)  # type: ignore[arg-type]
    assert wanted.keys() == got.keys()
    assert all(same(got[name], wanted[name]) for name in wanted)
    assert not (tmp_path / "broken.training").exists()


def test_ctrl_c_saves_and_resuming_ends_with_the_same_weights(
    base_dir: Path, data_dir: Path, tmp_path: Path
) -> None:
    through = options(base_dir, data_dir, tmp_path / "through", iters=7)
    whole = train(through)
    broken = through.with_changes(output=tmp_path / "broken")

    def interrupt(event: Event) -> None:
        if isinstance(event, Trained) and event.step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    first = train(broken, interrupt)
    assert signal.getsignal(signal.SIGINT) is handler
    assert first.interrupted
    assert first.step == 4
    last = train(broken.with_changes(resume=True))
    wanted, got = tensors(whole.output), tensors(last.output)  # type: ignore[arg-type]
    assert all(same(got[name], wanted[name]) for name in wanted)


def interrupted(base: Path, data: Path, output: Path) -> TrainOptions:
    """The options of a run that has been saved after two steps."""
    given = options(base, data, output)

    def interrupt(event: Event) -> None:
        if isinstance(event, Trained):
            os.kill(os.getpid(), signal.SIGINT)

    assert train(given, interrupt).interrupted
    return given


def test_only_the_same_run_is_resumed(base_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    given = interrupted(base_dir, data_dir, tmp_path / "out")
    with pytest.raises(OutputError, match=r"unfinished run\. Add --resume"):
        train(given)
    given = given.with_changes(resume=True)
    with pytest.raises(TrainingError, match=r"learning_rate was 0\.01, is 0\.02"):
        train(given.with_changes(learning_rate=0.02))
    write_jsonl(tmp_path / "other" / "train.jsonl", [chat(recite(7))])
    with pytest.raises(TrainingError, match=r"train\.jsonl was"):
        train(given.with_changes(data=tmp_path / "other"))
    # How a run is watched may change.
    assert train(given.with_changes(steps_per_report=1, steps_per_eval=2)).step == 6


def test_a_damaged_save_is_said_to_be_one(base_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    given = interrupted(base_dir, data_dir, tmp_path / "out")
    state = tmp_path / "out.training" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(TrainingError, match="not a whole save"):
        train(given.with_changes(resume=True))


@pytest.mark.parametrize("most", [0, 100, 5000])
def test_a_full_disk_is_said_to_be_full(
    base_dir: Path, data_dir: Path, tmp_path: Path, most: int
) -> None:
    """No file may have more than `most` bytes: as on a full disk, the rest is not written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot be (written|saved)"):
            train(options(base_dir, data_dir, tmp_path / "out", iters=4, save_every=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {p.name for p in (tmp_path / "out.training").iterdir()} <= {"run.json"}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"[1]", b"7", b"[" * 100_000, b"\xff"])
def test_damaged_settings_are_said_to_be_so(
    base_dir: Path, data_dir: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "out.training").mkdir()
    (tmp_path / "out.training" / "run.json").write_bytes(content)
    with pytest.raises(TrainingError, match=r"run\.json"):
        train(options(base_dir, data_dir, tmp_path / "out", resume=True))


@pytest.mark.parametrize("content", ['{"a": 1}', "[1.5]", "[-1]", "[true]", "x", f"[{2**40}]"])
def test_damaged_answers_are_said_to_be_so(tmp_path: Path, content: str) -> None:
    (tmp_path / "answers.jsonl").write_text(f"[1, 2]\n{content}\n")
    with pytest.raises(TrainingError, match=r"answers\.jsonl"):
        kept_answers(tmp_path / "answers.jsonl")
    (tmp_path / "answers.jsonl").write_text(f"[1, 2]\n{content}")  # a line cut short is dropped
    assert kept_answers(tmp_path / "answers.jsonl") == [[1, 2]]
    assert (tmp_path / "answers.jsonl").read_text() == "[1, 2]\n"


# Ways to run


def test_texts_are_trained_on_as_they_are(base_dir: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data" / "train.jsonl", [{"text": recite(i)[1]} for i in range(8)])
    events: list[Event] = []
    train(options(base_dir, tmp_path / "data", tmp_path / "out"), events.append)
    assert any("training without validation" in str(event) for event in events)


def test_recomputing_layers_gives_the_same_run(
    base_dir: Path, data_dir: Path, tmp_path: Path
) -> None:
    train(options(base_dir, data_dir, tmp_path / "kept"))
    train(options(base_dir, data_dir, tmp_path / "recomputed", grad_checkpoint=True))
    kept, recomputed = tensors(tmp_path / "kept"), tensors(tmp_path / "recomputed")
    for name in kept:
        assert np.allclose(np.array(kept[name]), np.array(recomputed[name]), atol=1e-4), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lean", [False, True])
def test_a_step_can_be_compiled(
    base_dir: Path,
    data_dir: Path,
    tmp_path: Path,
    dtype: str,
    lean: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mx.enable_compile()
    if lean:
        monkeypatch.setattr("orthrus_mlx.training.loss.CHUNK", 5 * len(WORDS))
    given = options(base_dir, data_dir, tmp_path, dtype=dtype, grad_checkpoint=lean)
    base = load_base(given)
    examples = read_split(data_dir, "train", base.tokenizer, {})
    run = Run(given, base, examples, examples, Workspace(tmp_path), silent)
    for step in (0, 1):  # traced, never evaluated: no kernel is compiled
        run.take_step(run.batches[step])
        run.valid_loss(run.batches[step])


@pytest.mark.skipif(
    mx.default_device() == mx.cpu and not os.environ.get("ORTHRUS_COMPILED_TESTS"),
    reason="compiling the kernels takes a minute on a CPU; set ORTHRUS_COMPILED_TESTS",
)
def test_compiled_steps_are_the_same_steps(
    base_dir: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = []
    for name in ("compiled", "lean", "plain"):
        with monkeypatch.context() as patch:
            if name == "lean":
                patch.setattr("orthrus_mlx.training.loss.CHUNK", 5 * len(WORDS))
            if name == "plain":
                mx.disable_compile()
            given = options(base_dir, data_dir, tmp_path / name, iters=20, steps_per_report=1)
            given = given.with_changes(grad_checkpoint=name == "lean")
            losses.append([loss for _, loss in train(given).losses])
    assert losses[0] == pytest.approx(losses[2], rel=2e-3)
    assert losses[1] == pytest.approx(losses[2], rel=2e-3)
    assert losses[0][0] != losses[0][-1]


# What cannot be trained


def test_a_run_overwrites_nothing(base_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("done")
    with pytest.raises(OutputError, match="exists already"):
        train(options(base_dir, data_dir, tmp_path / "full"))
    with pytest.raises(TrainingError, match="no unfinished run"):
        train(options(base_dir, data_dir, tmp_path / "out", resume=True))
    (tmp_path / "empty").mkdir()
    train(options(base_dir, data_dir, tmp_path / "empty", iters=1))


def test_a_failed_run_leaves_no_output(
    base_dir: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def corrupt(weights: dict[str, mx.array], folder: Path) -> list[Path]:
        files = write_weights(weights, folder)
        content = tensors(folder)
        content["model.norm.weight"] = content["model.norm.weight"] + 1
        mx.save_safetensors(str(files[0]), content)
        return files

    write_weights = export._write_weights
    monkeypatch.setattr(export, "_write_weights", corrupt)
    with pytest.raises(TrainingError, match="differ from those of"):
        train(options(base_dir, data_dir, tmp_path / "out"))
    assert {p.name for p in tmp_path.iterdir()} == {"base"} | {"out.training"}
    monkeypatch.undo()
    assert train(options(base_dir, data_dir, tmp_path / "out", resume=True)).output is not None


def test_a_frozen_weight_that_changes_is_noticed(
    base_dir: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(run: Run) -> bool:
        run.base.model.model.norm.weight = run.base.model.model.norm.weight * 1.001
        return True

    monkeypatch.setattr(Run, "run", change)
    with pytest.raises(TrainingError, match="frozen weight changed"):
        train(options(base_dir, data_dir, tmp_path / "out"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"quantization": {"group_size": 64, "bits": 4}}, TrainingError, "is quantized"),
        ({"model_type": "llama"}, OrthrusError, r"'llama'; .*a Qwen3 checkpoint"),
        ({"hidden_size": 48}, OrthrusError, "calls for"),
    ],
)
def test_an_unusable_base_is_refused(
    base_dir: Path, data_dir: Path, tmp_path: Path, changes: Any, error: Any, said: str
) -> None:
    edit_config(base_dir, **changes)
    with pytest.raises(error, match=said):
        train(options(base_dir, data_dir, tmp_path / "out"))
    assert {p.name for p in tmp_path.iterdir()} == {"base"}


def test_a_mask_needs_an_id_of_its_own(tokenizer_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    config = base_config(vocab_size=len(WORDS))
    weights = random_weights(config, diffusion=False)
    full = write_checkpoint(tmp_path / "full", config, weights, tokenizer_from=tokenizer_dir)
    given = options(full, data_dir, tmp_path / "out", iters=1)
    with pytest.raises(TrainingError, match=r"uses all 30 ids.*--mask-token-id"):
        train(given)
    with pytest.raises(TrainingError, match=r"mask_token_id is 30; the ids of .* end at 29"):
        train(given.with_changes(mask_token_id=30))
    train(given.with_changes(mask_token_id=5))  # "system", which no text here has
    assert load(tmp_path / "out")[0].config.mask_token_id == 5


def test_a_view_without_its_block_size_is_refused(
    base_dir: Path, data_dir: Path, tmp_path: Path
) -> None:
    train(options(base_dir, data_dir, tmp_path / "view", iters=1))
    edit_config(tmp_path / "view", block_size=None)
    with pytest.raises(ConfigError, match="Restore the original"):
        train(options(tmp_path / "view", data_dir, tmp_path / "out"))


@pytest.mark.parametrize(
    ("records", "changes", "said"),
    [
        ([], {}, "holds nothing to train on"),
        ([chat(recite(0))], {"max_seq_length": 5}, "holds nothing to train on"),
        (["{"], {}, r"train\.jsonl:1 cannot be read as JSON"),
    ],
)
def test_unusable_data_is_refused(
    base_dir: Path, tmp_path: Path, records: Any, changes: Any, said: str
) -> None:
    write_jsonl(tmp_path / "data" / "train.jsonl", records)
    with pytest.raises(DataError, match=said):
        train(options(base_dir, tmp_path / "data", tmp_path / "out", **changes))
    assert {p.name for p in tmp_path.iterdir()} == {"base", "data"}


def test_a_loss_that_is_no_number_ends_the_run(
    base_dir: Path, data_dir: Path, tmp_path: Path
) -> None:
    weights = tensors(base_dir)
    weights["model.norm.weight"] = weights["model.norm.weight"] * float("nan")
    mx.save_safetensors(str(base_dir / "model.safetensors"), weights)
    with pytest.raises(TrainingError, match="loss is nan at step 2"):
        train(options(base_dir, data_dir, tmp_path / "out"))


def test_the_learning_rate_rises_then_falls_to_nothing() -> None:
    given = TrainOptions("m", Path("d"), Path("o"), iters=100, warmup=0.1, learning_rate=1.0)
    rates = [learning_rate(given)(step).item() for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-3
    without = TrainOptions("m", Path("d"), Path("o"), iters=100, warmup=0, learning_rate=1.0)
    assert [learning_rate(without)(step).item() for step in (0, 50)] == pytest.approx([1.0, 0.5])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_the_program_saves_first(
    base_dir: Path, data_dir: Path, tmp_path: Path, number: int
) -> None:
    given = options(base_dir, data_dir, tmp_path / "out")

    def strike(event: Event) -> None:
        if isinstance(event, Trained | Saved):  # as it ends too
            os.kill(os.getpid(), number)

    with pytest.raises(SystemExit) as ended, ends_as_exception():
        train(given, strike)
    assert ended.value.code == 128 + number
    assert not train(given.with_changes(resume=True)).interrupted
