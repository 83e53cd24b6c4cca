"""Which part of a model a rank holds."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from orthrus_mlx import DistributedError, load
from orthrus_mlx.checkpoint.info import describe
from orthrus_mlx.checkpoint.read import inspect
from orthrus_mlx.convert import convert
from orthrus_mlx.distributed.cut import axis_of, check_cut, part_of, possible_shares, share
from tests.distributed.conftest import checkpoint
from tests.distributed.ranks import job


def test_the_parts_are_the_whole(random12: Path) -> None:
    weights: Any = mx.load(str(random12 / "model.safetensors"))
    cut = 0
    for name, whole in weights.items():
        parts = [part_of(name, whole, rank, 3) for rank in range(3)]
        axis = axis_of(name)
        if axis is None:
            assert all(mx.array_equal(part, whole).item() for part in parts)
            continue
        cut += 1
        assert mx.array_equal(mx.concatenate(parts, axis=axis), whole).item()
    assert cut == 2 * 11  # each layer has four projections twice, and three of the MLP


def test_a_number_of_ranks_that_does_not_come_out_even_is_refused(tmp_path: Path) -> None:
    found = inspect(checkpoint(tmp_path / "a"))
    with pytest.raises(DistributedError, match=r"cut into 5: it has 12 heads.*2, 3, 4, 6 or 12\."):
        check_cut(found.config, found.tensors, 5)
    packed = inspect(convert(tmp_path / "a", tmp_path / "b", quantize=True))
    check_cut(packed.config, packed.tensors, 2)
    with pytest.raises(DistributedError, match=r"384 columns in groups of 64.*2, 3 or 6"):
        check_cut(packed.config, packed.tensors, 4)


def test_info_says_what_each_rank_would_hold(random12: Path) -> None:
    shares = describe(random12).shares
    assert shares[8] == "it has 12 heads for keys and values"
    two = shares[2]
    assert not isinstance(two, str)
    whole = sum(info.nbytes for info in inspect(random12).tensors.values())
    assert two.others < two.weights < 0.6 * whole


@pytest.mark.parametrize(
    ("hidden", "middle", "layers", "heads", "kv_heads", "tied"),
    [(2048, 6144, 28, 16, 8, True), (2560, 9728, 36, 32, 8, True), (4096, 12288, 36, 32, 8, False)],
)
@pytest.mark.parametrize("bits", [16, 4])
def test_the_public_models_can_be_cut_in_2_4_and_8(
    hidden: int, middle: int, layers: int, heads: int, kv_heads: int, tied: bool, bits: int
) -> None:
    from orthrus_mlx import ModelConfig
    from orthrus_mlx.checkpoint.tensors import TensorInfo, plain_shapes

    config = ModelConfig.from_dict(
        {
            "model_type": "qwen3", "hidden_size": hidden, "intermediate_size": middle,
            "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "head_dim": 128, "vocab_size": 151936,
            "max_position_embeddings": 40960, "rope_theta": 1e6, "block_size": 32,
            "mask_token_id": 151669, "tie_word_embeddings": tied,
        }
    )  # fmt: skip
    tensors: dict[str, TensorInfo] = {}
    for name, shape in plain_shapes(config).items():
        path = name.removesuffix(".weight")
        if bits == 16 or len(shape) == 1:
            tensors[name] = TensorInfo("BF16", shape, Path("a"))
            continue
        tensors[name] = TensorInfo("U32", (shape[0], shape[1] // 8), Path("a"))
        for part in ("scales", "biases"):
            tensors[f"{path}.{part}"] = TensorInfo("BF16", (shape[0], shape[1] // 64), Path("a"))
    whole = sum(info.nbytes for info in tensors.values())
    assert share(tensors, 2).weights < 0.6 * whole
    shares = possible_shares(config, tensors)
    assert [n for n, held in shares.items() if not isinstance(held, str)] == [2, 4, 8]


@pytest.mark.full
@pytest.mark.parametrize("kind", ["bfloat16", "4 bits"])
def test_no_rank_ever_holds_much_more_than_its_part(tmp_path: Path, kind: str) -> None:
    shape = {"hidden_size": 256, "intermediate_size": 3072, "num_hidden_layers": 6}
    folder = checkpoint(tmp_path / "model", mx.bfloat16, **shape)
    if kind == "4 bits":
        folder = convert(folder, tmp_path / "packed", quantize=True)
    whole = sum(info.nbytes for info in inspect(folder).tensors.values())
    found = job(2, "memory", folder, folder=tmp_path)
    for rank in (found["here"], *found["ranks"]):
        assert rank["memory"] < 0.6 * whole
        assert rank["peak"] < 0.65 * whole  # one whole tensor at a time
    assert load(folder) is not None
