"""Several ranks write what one process writes, and what plain decoding does."""

from pathlib import Path
from typing import Any

import pytest

from orthrus_mlx.convert import convert
from tests.distributed import jobs
from tests.distributed.conftest import checkpoint
from tests.distributed.ranks import job


def apart(found: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What was found, and what the other ranks did; they all ran the same passes."""
    ranks = found.pop("ranks")
    assert {one["passes"] for one in ranks} != {0}
    assert len({one["passes"] for one in ranks}) == 1
    return found, ranks


def test_two_ranks_write_what_one_process_does(random12: Path, tmp_path: Path) -> None:
    # All modes and cycles, greedy and sampled, constrained, with quantized KV caches, in batches
    # with cancels; rows alone and beside others; random requests under random costs.
    found, (other,) = apart(job(2, "together", random12, folder=tmp_path))
    alone = jobs.answers(random12) | jobs.batch(random12) | jobs.cancelled(random12)
    assert {name: found[name] for name in alone} == alone
    assert (found["same rows"], found["parallel equals ar"]) == (32, True)
    assert len({tuple(ids) for name, ids in alone.items() if name.endswith(" 0.0")}) == 1
    assert found["checked"] > 5
    assert other["passes"] > 100


@pytest.mark.full
@pytest.mark.parametrize("kernels", ["masks", "kernels"])
def test_compiled_passes_over_ranks(random12: Path, tmp_path: Path, kernels: str) -> None:
    # As on CUDA: of both ranks, whose passes are traced and padded alike.
    found, _ = apart(job(2, "compiled", random12, kernels, folder=tmp_path, module="cuda_jobs"))
    alone = jobs.answers(random12) | jobs.batch(random12) | jobs.cancelled(random12)
    assert {name: found[name] for name in alone} == alone
    assert found["traced"] > 10
    assert (found["of several"] > 5) == (kernels == "kernels")


@pytest.mark.full
@pytest.mark.parametrize("rank", ["0", "1"])
def test_where_one_rank_has_cuda_no_pass_is_compiled(
    random12: Path, tmp_path: Path, rank: str
) -> None:
    found, _ = apart(job(2, "mixed", random12, rank, folder=tmp_path, module="cuda_jobs"))
    alone = jobs.answers(random12)
    assert {name: found[name] for name in alone} == alone
    assert found["traced"] == 0


@pytest.mark.full
def test_compiled_passes_of_another_type(random12: Path, tmp_path: Path) -> None:
    # Of the whole model and of one layer, as the probe runs it: on both ranks.
    found, _ = apart(job(2, "cast", random12, folder=tmp_path, module="cuda_jobs"))
    assert found["types"] == ["float32", "bfloat16", "float32"]
    assert found["far"] < 0.05


@pytest.mark.full
@pytest.mark.parametrize("ranks", [3, 4])
def test_three_and_four_ranks(random12: Path, tmp_path: Path, ranks: int) -> None:
    found, others = apart(job(ranks, "rows", random12, folder=tmp_path))
    assert found == {"same rows": 32, "parallel equals ar": True}
    assert len(others) == ranks - 1
    found, _ = apart(job(ranks, "answers", random12, folder=tmp_path))
    assert found == jobs.answers(random12)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["bfloat16", "4 bits"])
def test_parallel_equals_ar_in_fewer_bits(tmp_path: Path, kind: str) -> None:
    import mlx.core as mx

    folder = checkpoint(tmp_path / "model", mx.bfloat16)
    if kind == "4 bits":
        folder = convert(folder, tmp_path / "packed", quantize=True)
    found, _ = apart(job(2, "rows", folder, folder=tmp_path))
    assert found == {"same rows": 32, "parallel equals ar": True}


@pytest.mark.full
def test_exact_numerics_are_probed_over_all_ranks(random12: Path, tmp_path: Path) -> None:
    found, _ = apart(job(2, "exact", random12, folder=tmp_path))
    assert found["same"]
    assert found["ids"] == jobs.exact(random12)["ids"]


@pytest.mark.full
def test_two_hundred_random_requests_and_no_deadlock(random12: Path, tmp_path: Path) -> None:
    for seed in ("1", "2"):
        found, _ = apart(job(2, "hunt", random12, "200", seed, folder=tmp_path))
        assert found["checked"] > 150 and found["cancelled"] > 50


@pytest.mark.full
def test_ctrl_c_anywhere_leaves_the_ranks_in_step(random12: Path, tmp_path: Path) -> None:
    found, _ = apart(job(2, "interrupted", random12, folder=tmp_path))
    assert found["struck"] > 50


@pytest.mark.full
def test_costs_are_kept_by_ranks_and_engine(random12: Path, tmp_path: Path) -> None:
    found, _ = apart(job(2, "calibrated", random12, folder=tmp_path))
    ranks, engine, *devices = found["several"]
    assert (ranks, engine, len(devices)) == (2, "ring", 2)
