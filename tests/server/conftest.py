"""A scripted server for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orthrus_mlx.batches import BatchEngine

from .house import Actor, House, serving

WEATHER = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
TIME = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
SCRIPT = {
    "think": "<think>\nWell, let me see.\n</think>\n\nThe answer is 4.",
    "weather": WEATHER,
    "both": f"Let me look.\n{WEATHER}\n{TIME}",
    "think and call": f"<think>\nI should look.\n</think>\n\n{WEATHER}",
    "long": "word " * 200,
    "bad": '<tool_call>\n{"name": "now", "arguments": {city: Rome}}\n</tool_call>',
    "half a name": TIME.replace("now", "\\ud800"),
    "half": WEATHER.replace("Rome", "\\ud800"),
    "all": "<think>\nHm.\n</think>\n\nSo.\n"
    + WEATHER.replace('"Rome"', '[1, {"y": "x"}]')
    + f"\n{TIME}",
}


@pytest.fixture(scope="session", autouse=True)
def no_probe() -> Iterator[None]:
    """A scripted model has no kernels to compare."""
    real = BatchEngine.prepare

    def prepare(engine: BatchEngine, progress: object = None) -> bool:
        if isinstance(engine._model, Actor):
            return False
        return real(engine, progress)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchEngine, "prepare", prepare)
        yield


@pytest.fixture(scope="session")
def house() -> Iterator[House]:
    """A server that answers by `SCRIPT`."""
    with serving(Actor(SCRIPT)) as running:
        yield running
