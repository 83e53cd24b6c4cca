"""Who may ask: keys, hosts, pages of other sites; and a body for every error."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import ContextLengthError, GenerationError, OrthrusError, RequestError, ServerError
from . import messages_reply, page
from .json_response import JSONResponse
from .metrics import Metrics
from .openai import error_body

MESSAGES = "/v1/messages"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
TYPES |= {413: "request_too_large", 429: "rate_limit_error", 504: "timeout_error"}


@dataclass
class Settings:
    """How a server is to be reached.

    Attributes:
        hosts: names that requests may call it by; empty for any.
        keys: API keys, one of which a request must bring; empty for none.
        origins: pages of other sites that may ask; "*" for all.
        seconds: of an answer at most.
        log: takes a line about each request; and what is to be said once.
    """

    hosts: Sequence[str] = LOOPBACK
    keys: Sequence[str] = ()
    origins: Sequence[str] = ()
    seconds: float = 1800.0
    log: Callable[[str], None] = field(default=lambda line: None)

    def told(self, error: Exception, path: str) -> RequestError:
        """What a client is told of an error; what failed within is for the log."""
        found = as_request_error(error)
        if found.status == 500:
            self.log(f"{path}: {error!r}")
        return found


class ClientGone(Exception):  # noqa: N818
    """The client has left; nobody reads what is sent."""


def as_request_error(error: Exception) -> RequestError:
    """Any error as what the client is told."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ContextLengthError):
        return RequestError(error, None, 400, "context_length_exceeded")
    if isinstance(error, GenerationError):
        return RequestError(error)
    if isinstance(error, ServerError):
        return RequestError(error, None, 503, "engine_ended")
    if isinstance(error, OrthrusError):
        return RequestError(error, None, 500)
    return RequestError(f"The engine failed: {type(error).__name__}.", None, 500)


def error_type(status: int) -> str:
    """The word that OpenAI's and Anthropic's clients tell errors apart by."""
    return TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


class Guard:
    """Lets in who may ask, gives every error a body, and notes each request."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        started, status = time.monotonic(), 499

        async def noted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check(request)
            await self._app(scope, receive, noted)
        except (ClientGone, ClientDisconnect):
            pass
        except Exception as error:
            if status != 499:  # the response has begun; the connection ends
                raise
            found = self._settings.told(error, request.url.path)
            await self._refusal(request, found)(scope, receive, noted)
        finally:
            route = scope.get("route")  # what was found; not what strangers make up
            self._metrics.requests[getattr(route, "path", "(none)"), status] += 1
            if request.url.path != "/health":
                seconds = time.monotonic() - started
                self._settings.log(f"{request.method} {request.url.path} {status} {seconds:.2f} s")

    def _check(self, request: Request) -> None:
        """Refuse who may not ask."""
        settings = self._settings
        host = request.headers.get("host", "")
        if settings.hosts and _name(host) not in settings.hosts:
            raise RequestError(
                f"The Host header is {host!r:.100}; this server is {', '.join(settings.hosts)}.",
                status=403,
            )
        # A page of another site can send requests here, though it may not read the answers.
        origin = request.headers.get("origin")
        own = origin is None or origin.partition("://")[2] == host
        if not own and "*" not in settings.origins and origin not in settings.origins:
            raise RequestError(
                f"Pages of {origin!r:.100} may not ask; --allow-origin lets them.", status=403
            )
        if not settings.keys or request.url.path in ("/health", *page.FILES):
            return
        given = request.headers.get("x-api-key") or ""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            given = token.strip()
        sent = given.encode("latin-1")  # the bytes that came
        keys = [key.encode("utf-8", "surrogateescape") for key in settings.keys]
        found = [hmac.compare_digest(sent, key) for key in keys]
        if not any(found):
            raise RequestError(
                "The API key is missing or wrong: send it as 'Authorization: Bearer KEY' or "
                "'x-api-key: KEY'.",
                status=401,
                code="invalid_api_key",
            )

    def _refusal(self, request: Request, error: RequestError) -> Response:
        kind = error_type(error.status)
        headers = {"Retry-After": "1"} if error.status == 429 else {}
        headers |= {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
        return JSONResponse(self._body(request)(error, kind), error.status, headers)

    def _body(self, request: Request) -> Callable[[RequestError, str], Any]:
        """How the client that sent a request reads errors."""
        anthropic = request.url.path == MESSAGES or request.url.path.startswith(f"{MESSAGES}/")
        anthropic = anthropic or "anthropic-version" in request.headers
        return messages_reply.error_body if anthropic else error_body


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # such as half of an IPv6 address
        return ""
