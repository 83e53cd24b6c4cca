"""The output appears whole or not at all, whatever happens on the way."""

import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest

from orthrus_mlx import IncompleteCheckpointError, OutputError
from orthrus_mlx.checkpoint import staging
from orthrus_mlx.checkpoint.read import inspect
from orthrus_mlx.convert import convert, pipeline
from orthrus_mlx.convert.writer import SafetensorsWriter
from tests.helpers import random_config, random_weights, write_checkpoint

HIDDEN = ".model.orthrus-partial"
CONFIG = random_config(0, hidden_size=64, num_hidden_layers=3)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "checkpoint"
    return write_checkpoint(folder, CONFIG, random_weights(CONFIG), shards=2)


@pytest.fixture
def place(tmp_path):
    """An empty folder to convert into; `left` tells what lies in it."""
    return tmp_path


def left(place):
    return sorted(path.name for path in place.iterdir())


def test_an_existing_folder_is_refused_before_any_work(place):
    for name in ("folder", "file", "link"):
        target = place / name
        if name == "folder":
            target.mkdir()
        elif name == "file":
            target.write_text("mine")
        else:
            target.symlink_to(place / "nowhere")
        with pytest.raises(OutputError, match="exists already"):
            convert("nobody/nothing", target)  # the source is not even looked for
    assert (place / "file").read_text() == "mine"


def test_missing_parents_are_made(source, place):
    convert(source, place / "a" / "b" / "model")
    assert left(place / "a" / "b") == ["model"]


def test_permissions_are_ordinary(source, place):
    folder = convert(source, place / "model")
    plain = place / "plain"
    plain.mkdir()
    assert folder.stat().st_mode == plain.stat().st_mode


# Failures inside the program


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_disk_full(source, place, monkeypatch, code):
    written = []

    def write(self, name, array):
        if len(written) == 10:
            raise OSError(code, os.strerror(code))
        written.append(name)

    monkeypatch.setattr(SafetensorsWriter, "write", write)
    with pytest.raises(OutputError, match=os.strerror(code)) as caught:
        convert(source, place / "new" / "model")
    assert ("MiB needed" in str(caught.value)) == (code != errno.EIO)
    assert left(place) == []


def test_no_room_is_seen_before_any_work(source, place, monkeypatch):
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    monkeypatch.setattr(pipeline, "write_weights", None)  # must not be reached
    with pytest.raises(OutputError, match=r"needs .* MiB, and .* has 0\.0 MiB free"):
        convert(source, place / "model")
    assert left(place) == []


def test_unwritable_place(source, place):
    (place / "file").write_text("")
    with pytest.raises(OutputError, match="could not be written"):
        convert(source, place / "file" / "model")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError, SystemExit])
def test_any_exception_on_the_way(source, place, error):
    def stop(done, total):
        if done > total / 2:
            assert left(place) == [HIDDEN]
            raise error

    with pytest.raises(error):
        convert(source, place / "model", on_progress=stop)
    assert left(place) == []


def test_a_source_that_breaks_off_while_being_read(place):
    """Whole when its header was checked, cut short before its data were read."""
    folder = write_checkpoint(place / "source", CONFIG, random_weights(CONFIG), shards=2)
    shard = folder / "model-00002-of-00002.safetensors"

    def cut(done, total):
        os.truncate(shard, shard.stat().st_size // 2)

    with pytest.raises(IncompleteCheckpointError, match=f"cannot be read from .*{shard.name}"):
        convert(folder, place / "model", on_progress=cut)
    assert left(place) == ["source"]


def test_a_folder_that_appears_meanwhile_is_left_alone(source, place):
    def appear(done, total):
        (place / "model").mkdir(exist_ok=True)

    with pytest.raises(OutputError, match="exists already"):
        convert(source, place / "model", on_progress=appear)
    assert left(place) == ["model"]
    assert left(place / "model") == []


# It checks itself


def tampering(monkeypatch, change):
    """Run `change(folder)` on what was written, before the check."""
    verify = pipeline.verify

    def tampered(folder, plan):
        change(folder, plan)
        verify(folder, plan)

    monkeypatch.setattr(pipeline, "verify", tampered)


def rewrite(folder, plan, *, drop=(), add=()):
    """Write the diffusion file anew with other tensors."""
    import mlx.core as mx

    specs = [spec for spec in plan[-1].specs if spec.name not in drop] + list(add)
    types = {"F32": mx.float32, "F16": mx.float16}
    with SafetensorsWriter(folder / plan[-1].name, specs) as writer:
        for spec in specs:
            writer.write(spec.name, mx.zeros(spec.shape, types[spec.dtype]))


def test_a_missing_tensor_is_found(source, place, monkeypatch):
    name = "model.layers.1.self_attn.k_proj_diff.weight"
    tampering(monkeypatch, lambda folder, plan: rewrite(folder, plan, drop=[name]))
    with pytest.raises(OutputError, match=f"missing: {name}"):
        convert(source, place / "model")
    assert left(place) == []


def test_an_unexpected_tensor_is_found(source, place, monkeypatch):
    def change(folder, plan):
        extra = plan[-1].specs[0]._replace(name="model.layers.9.self_attn.k_proj_diff.weight")
        rewrite(folder, plan, add=[extra])

    tampering(monkeypatch, change)
    with pytest.raises(OutputError, match=r"unexpected.* model\.layers\.9\.self_attn\.k_proj_diff"):
        convert(source, place / "model")


def test_another_shape_is_found(source, place, monkeypatch):
    def change(folder, plan):
        spec = plan[-1].specs[0]
        rewrite(folder, plan, drop=[spec.name], add=[spec._replace(shape=(3, 5))])

    tampering(monkeypatch, change)
    with pytest.raises(OutputError, match=r"has shape \[3, 5\]"):
        convert(source, place / "model")


def test_another_type_is_found(source, place, monkeypatch):
    """The loader would take it, but it is not what was planned."""

    def change(folder, plan):
        spec = plan[-1].specs[0]
        rewrite(folder, plan, drop=[spec.name], add=[spec._replace(dtype="F16")])

    tampering(monkeypatch, change)
    with pytest.raises(OutputError, match=r"is F16 .* instead of F32"):
        convert(source, place / "model")


def test_a_shard_cut_short_is_found(source, place, monkeypatch):
    def change(folder, plan):
        os.truncate(folder / "model.safetensors", 1000)

    tampering(monkeypatch, change)
    with pytest.raises(OutputError, match="not a whole safetensors file"):
        convert(source, place / "model")


# Ended from outside


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (signal.SIGINT, KeyboardInterrupt),
        (signal.SIGTERM, SystemExit),
        (signal.SIGHUP, SystemExit),
    ],
)
def test_interrupted_half_way(source, place, number, error):
    handler = signal.getsignal(number)
    if handler is signal.SIG_IGN:
        pytest.skip("this signal is ignored here")

    def strike(done, total):
        if done > total / 2:
            signal.raise_signal(number)

    with pytest.raises(error) as caught:
        convert(source, place / "model", on_progress=strike)
    assert left(place) == []
    assert signal.getsignal(number) is handler
    if error is SystemExit:
        assert caught.value.code == 128 + number


PAUSE_HALF_WAY = """
    import sys, time
    from orthrus_mlx.convert import convert

    def pause(done, total):
        if done > total / 2:
            print("half", flush=True)
            time.sleep(60)

    convert(sys.argv[1], sys.argv[2], quantize=True, q_group_size=32, on_progress=pause)
"""


@pytest.fixture
def half_way(source, place):
    """A process stopped in the middle of converting to `place / "model"`."""
    command = [sys.executable, "-c", textwrap.dedent(PAUSE_HALF_WAY), source, place / "model"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "half\n"
        yield child
        child.kill()


def test_killed_half_way(half_way, source, place):
    assert left(place) == [HIDDEN]
    with pytest.raises(OutputError, match="Another program is writing"):
        convert(source, place / "model")
    assert left(place) == [HIDDEN]
    assert list((place / HIDDEN / "model").iterdir())  # the other program's work is untouched
    half_way.send_signal(signal.SIGKILL)
    half_way.wait(20)
    assert left(place) == [HIDDEN]  # nobody could remove it, but it is not what was asked for

    convert(source, place / "model")
    assert left(place) == ["model"]  # the next run removes it
    inspect(place / "model")


def test_files_of_others_in_the_hidden_folder_stay(source, place):
    (place / HIDDEN).mkdir()
    (place / HIDDEN / "mine").write_text("")
    convert(source, place / "model")
    assert left(place) == [HIDDEN, "model"]
    assert left(place / HIDDEN) == ["mine"]


@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks(source, place, monkeypatch, code):
    class NoLocks(staging.FileLock):
        def acquire(self, *args, **options):
            raise OSError(code, os.strerror(code))

    def second(done, total):
        with pytest.raises(OutputError, match="Another program is writing"):
            convert(source, place / "model")
        assert left(place) == [HIDDEN]

    monkeypatch.setattr(staging, "FileLock", NoLocks)
    convert(source, place / "model", on_progress=second)
    assert left(place) == ["model"]


def test_a_limit_on_file_sizes(source, place):
    """A real failure to write, in the middle of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OutputError, match=r"File too large .*MiB needed"):
            convert(source, place / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left(place) == []
