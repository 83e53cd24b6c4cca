"""Converting takes memory for a tensor or two, whatever the size of the model."""

import subprocess
import sys
import textwrap

import mlx.core as mx
import pytest

from tests.helpers import random_config, tensor_shapes, write_checkpoint

MIB = 1 << 20
# Peak memory is that of the process itself: a child counts from what its parent held.
MEASURE = """
    import resource, sys
    import mlx.core as mx
    from orthrus_mlx.convert import convert

    def peak():
        if sys.platform == "darwin":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        lines = open("/proc/self/status").read().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

    mx.eval(mx.quantize(mx.zeros((64, 64), mx.bfloat16)))
    before = peak()
    convert(sys.argv[1], sys.argv[2] + "/plain")
    convert(sys.argv[1], sys.argv[2] + "/packed", quantize=True)
    print(peak() - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """About 400 MB in six shards, the largest tensor 17 MB."""
    config = random_config(
        0,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=9,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=8192,
        tie_word_embeddings=True,
    )
    shapes = tensor_shapes(config)
    # One random matrix of each shape will do.
    kinds = {shape: 0.02 * mx.random.normal(shape, mx.bfloat16) for shape in set(shapes.values())}
    mx.eval(kinds)
    weights = {name: kinds[shape] for name, shape in shapes.items()}
    folder = tmp_path_factory.mktemp("large") / "source"
    return write_checkpoint(folder, config, weights, shards=6)


def test_peak_memory(large, tmp_path):
    shards = sorted(large.glob("*.safetensors"))
    largest = max(file.stat().st_size for file in shards)
    assert len(shards) == 6
    assert sum(file.stat().st_size for file in shards) > 370 * MIB
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), large, tmp_path]
    used = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    # The promise is the largest shard and 2 GiB. For shards this small that says nothing; what is
    # measured is a few of the largest tensors and what the conversion imports.
    assert used < largest
