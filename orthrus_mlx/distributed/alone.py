"""Whether one machine is faster than all of them together, by what was measured before."""

from __future__ import annotations

import os
import warnings
from typing import Any, NamedTuple

from ..checkpoint.config import ModelConfig
from ..checkpoint.contents import Checkpoint
from ..checkpoint.fingerprint import Fingerprint
from ..decoding.cost_model import RATES, Costs, policies, speed
from ..device.calibrate import stored_costs
from ..device.memory import fits
from ..errors import DistributedError
from .cut import local_config
from .group import Group

VARIABLE = "ORTHRUS_MLX_ALONE"
CHOICES = ("auto", "never")


class AloneWarning(UserWarning):
    """Several machines were started, and one goes on."""


class _Part(NamedTuple):
    """What measurements over a group are looked up by; see `device_key`."""

    config: ModelConfig
    fingerprint: Fingerprint
    several: tuple[Any, ...]


def better_alone(checkpoint: Checkpoint, group: Group) -> bool:
    """Whether to go on with rank 0 alone; says so where that is the case.

    Only where the model fits this machine, and both were measured: this machine on its own, and all
    of them. Of texts from easy to hard to draft, most must be written faster by one.

    Raises:
        DistributedError: if the environment asks for what there is not.
    """
    wish = os.environ.get(VARIABLE) or "auto"
    if wish not in CHOICES:
        raise DistributedError(f"{VARIABLE} is {wish!r}; expected {' or '.join(CHOICES)}.")
    if wish == "never" or not fits(checkpoint.nbytes):
        return False
    block = checkpoint.config.block_size
    part = _Part(
        local_config(checkpoint.config, group.size),
        checkpoint.fingerprint,
        (group.size, group.backend, *group.devices),
    )
    one, several = stored_costs(checkpoint, block), stored_costs(part, block)
    if one is None or several is None:
        return False
    gain = typical_gain(one, several, block)
    if gain >= 1:
        return False
    warnings.warn(
        f"One machine is expected to be {1 / gain:.1f} times as fast as {group.size} by what was "
        f"measured here, so rank 0 goes on alone (--alone never keeps all).",
        AloneWarning,
        stacklevel=2,
    )
    return True


def typical_gain(one: Costs, several: Costs, block: int) -> float:
    """Speed over several machines by that of one: the median over texts, easy and hard to draft."""
    gains = sorted(best_speed(several, block, r) / best_speed(one, block, r) for r in RATES)
    return gains[len(gains) // 2]


def best_speed(costs: Costs, block: int, rate: float) -> float:
    """Tokens per unit of time of the best policy, plain decoding among them."""
    drafting = [speed(costs, policy, rate) for policy in policies(costs, "auto", block)]
    return max([1 / costs.of_ar_step(), *drafting])
