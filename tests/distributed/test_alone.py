"""When one of several machines goes on alone, and what needs no ranks to be checked."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orthrus_mlx import DistributedError, load
from orthrus_mlx.checkpoint.read import inspect
from orthrus_mlx.decoding.cost_model import NOMINAL, Costs
from orthrus_mlx.device import calibrate, measured
from orthrus_mlx.distributed import alone
from orthrus_mlx.distributed.alone import AloneWarning, better_alone, typical_gain
from orthrus_mlx.distributed.cut import local_config
from orthrus_mlx.distributed.part import digest
from tests.distributed.ranks import job

GROUP: Any = SimpleNamespace(size=2, backend="ring", devices=["a", "b"])


def times(factor: float) -> Costs:
    return Costs(
        {n: factor * c for n, c in NOMINAL.verify.items()},
        {n: factor * c for n, c in NOMINAL.draft.items()},
        {n: factor * c for n, c in NOMINAL.fused.items()},
        plain=factor * NOMINAL.of_ar_step(),
    )


def keep(model: Any, block: int, costs: Costs) -> None:
    measured.store("costs", calibrate._key(model, block), costs, calibrate._encode)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORTHRUS_MLX_CACHE", str(tmp_path / "measured"))
    monkeypatch.delenv("ORTHRUS_MLX_ALONE", raising=False)


def part(checkpoint: Any, *several: Any) -> Any:
    config = local_config(checkpoint.config, 2)
    return alone._Part(config, checkpoint.fingerprint, several)


def test_one_goes_on_alone_only_where_both_were_measured_and_it_is_faster(
    random12: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = inspect(random12)
    block = found.config.block_size
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not better_alone(found, GROUP)  # nothing is known
        keep(found, block, times(1.0))
        assert not better_alone(found, GROUP)  # of the group
        keep(part(found, 2, "jaccl", "a", "b"), block, times(3.0))
        keep(part(found, 2, "ring", "a", "c"), block, times(3.0))
        assert not better_alone(found, GROUP)  # of this group
        keep(part(found, 2, "ring", "a", "b"), block, times(0.8))
        assert not better_alone(found, GROUP)  # which is faster
    keep(part(found, 2, "ring", "a", "b"), block, times(2.0))
    with pytest.warns(AloneWarning, match=r"2\.0 times as fast as 2 .* goes on alone"):
        assert better_alone(found, GROUP)
    monkeypatch.setattr(alone, "fits", lambda _: False)
    assert not better_alone(found, GROUP)
    monkeypatch.setenv("ORTHRUS_MLX_ALONE", "never")
    assert not better_alone(found, GROUP)
    monkeypatch.setenv("ORTHRUS_MLX_ALONE", "perhaps")
    with pytest.raises(DistributedError, match="'perhaps'; expected auto or never"):
        better_alone(found, GROUP)


def test_the_gain_is_that_of_most_texts() -> None:
    assert typical_gain(times(1.0), times(0.5), 32) == pytest.approx(2.0)
    slower_steps = Costs(  # drafting alone gains
        {n: (1.5 if n == 1 else 0.5) * c for n, c in NOMINAL.verify.items()},
        {n: 0.5 * c for n, c in NOMINAL.draft.items()},
        {n: 0.5 * c for n, c in NOMINAL.fused.items()},
    )
    assert typical_gain(times(1.0), slower_steps, 32) > 1


def test_the_key_of_a_part_is_that_of_the_model_that_is_loaded(random12: Path) -> None:
    found = inspect(random12)
    model: Any = load(random12)[0]
    assert measured.device_key(found) == measured.device_key(model)
    key = measured.device_key(part(found, 2, "ring", "a", "b"))
    assert key["several"] == [2, "ring", "a", "b"] and key["heads"] == [6, 6]


def test_an_other_checkpoint_has_another_digest(random12: Path) -> None:
    model: Any = load(random12)[0]
    before = digest(model)
    assert digest(load(random12)[0]) == before
    norm = model.model.norm
    norm.weight = norm.weight + 1
    assert digest(model) != before


@pytest.mark.full
@pytest.mark.parametrize("faster", [True, False])
def test_rank_0_goes_on_alone_and_the_others_leave(
    random12: Path, tmp_path: Path, faster: bool
) -> None:
    found = inspect(random12)
    name = measured.device_name()
    keep(found, found.config.block_size, times(1.0))
    of_both = times(2.0 if faster else 0.5)
    keep(part(found, 2, "ring", name, name), found.config.block_size, of_both)
    seen = job(2, "memory", random12, folder=tmp_path, ORTHRUS_MLX_ALONE="auto")
    whole = sum(info.nbytes for info in found.tensors.values())
    assert ("ranks" in seen) == (not faster)
    assert (seen["here"]["memory"] > 0.9 * whole) == faster
