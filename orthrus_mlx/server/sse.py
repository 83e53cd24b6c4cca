"""Server-sent events: how answers stream."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

DONE = "data: [DONE]\n\n"


def data(body: Mapping[str, Any]) -> str:
    """An event without a name."""
    return f"data: {json.dumps(body)}\n\n"


def named(body: Mapping[str, Any]) -> str:
    """An event that is named by its type."""
    return f"event: {body['type']}\ndata: {json.dumps(body)}\n\n"


def comment(reading: tuple[int, int]) -> str:
    """What clients do not read: it keeps a connection open, and tells how far the prompt is."""
    return f": reading {reading[0]}/{reading[1]}\n\n"
