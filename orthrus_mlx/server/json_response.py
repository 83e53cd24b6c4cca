"""Responses that are one JSON value."""

from __future__ import annotations

import json
from typing import Any

from starlette import responses


class JSONResponse(responses.JSONResponse):
    """JSON in ASCII: clients and models can write "\\ud800", which UTF-8 cannot."""

    def render(self, content: Any) -> bytes:
        """The bytes to send."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
