"""Routes: who may ask what, and how answers and errors leave."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import ContextLengthError, GenerationError, OrthrusError, RequestError, ServerError
from . import chat, completions, messages, messages_reply, page, responses
from .answers import Answers, encode
from .ask import Ask, Service
from .fields import Fields, parse_body
from .json_response import JSONResponse
from .metrics import Metrics
from .openai import error_body

MOST_BYTES = 32 << 20  # of a request's body
BODY_SECONDS = 60.0  # in which it is to arrive
MESSAGES = "/v1/messages"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
TYPES |= {413: "request_too_large", 429: "rate_limit_error", 504: "timeout_error"}

T = TypeVar("T")


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


class Reply(Protocol):
    """How an API writes its answers."""

    async def whole(self, answers: Answers) -> dict[str, Any]:
        """The response as one object."""

    def stream(self, answers: Answers) -> AsyncIterator[str]:
        """The response as server-sent events."""

    def failed(self, error: RequestError, kind: str) -> str:
        """The event that ends a stream before its time."""


@dataclass
class Api:
    """An endpoint that answers.

    Attributes:
        read: what a body asks for.
        reply: how it is answered.
        error: an error's body, given the error and its type.
    """

    read: Callable[[Fields], Ask]
    reply: Callable[[Service, Fields, Ask], Reply]
    error: Callable[[RequestError, str], Any] = error_body


class ClientGone(Exception):  # noqa: N818
    """The client has left; nobody reads what is sent."""


def build(service: Service, settings: Settings) -> Starlette:
    """The application that serves a model."""
    metrics = Metrics(settings.log)

    async def health(request: Request) -> Response:
        running, waiting = service.worker.load
        healthy = service.worker.healthy
        body = {
            "status": "ok" if healthy else "error",
            "model": service.name,
            "running": running,
            "waiting": waiting,
        }
        return JSONResponse(body, 200 if healthy else 503)

    async def numbers(request: Request) -> Response:
        return Response(metrics.text(service.worker), media_type="text/plain; version=0.0.4")

    model = {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "orthrus-mlx",
        # As Anthropic's clients read it.
        "type": "model",
        "display_name": service.name,
        "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(service.created)),
        "max_model_len": service.model.config.max_position_embeddings,
        # As our page reads it.
        "orthrus": {
            "temperature": service.options.get("temperature"),
            "max_tokens": service.options.get("max_tokens"),
            "switches_thinking": service.switches_thinking,
        },
    }

    async def models(request: Request) -> Response:
        ends = {"has_more": False, "first_id": service.name, "last_id": service.name}
        return JSONResponse({"object": "list", "data": [model], **ends})

    async def one_model(request: Request) -> Response:
        asked = request.path_params["name"]
        if asked != service.name:
            raise RequestError(
                f"There is no model {asked!r:.200} here, but {service.name!r}.",
                "model",
                404,
                "model_not_found",
            )
        return JSONResponse(model)

    routes = [
        Route(
            "/v1/chat/completions",
            _answering(chat_api(), service, settings, metrics),
            methods=["POST"],
        ),
        Route(
            "/v1/completions",
            _answering(Api(completions.read, completions.Reply), service, settings, metrics),
            methods=["POST"],
        ),
        Route(
            "/v1/responses",
            _answering(Api(responses.read, responses.Reply), service, settings, metrics),
            methods=["POST"],
        ),
        Route(MESSAGES, _answering(messages_api(), service, settings, metrics), methods=["POST"]),
        Route(f"{MESSAGES}/count_tokens", _counting(service, metrics), methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", one_model),
        Route("/health", health),
        Route("/metrics", numbers),
        *page.routes(),
    ]
    middleware = []
    if settings.origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.origins),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
            )
        )
    middleware.append(Middleware(Guard, settings=settings, metrics=metrics))
    handlers: Any = {HTTPException: _of_router}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


def chat_api() -> Api:
    """OpenAI's chat API."""
    return Api(chat.read, chat.Reply)


def messages_api() -> Api:
    """Anthropic's messages."""
    return Api(messages.read, messages_reply.Reply, messages_reply.error_body)


def _counting(service: Service, metrics: Metrics) -> Callable[[Request], Awaitable[Response]]:
    """The handler that counts the tokens of a message's prompt."""

    async def handle(request: Request) -> Response:
        fields = parse_body(await unless_gone(request, read_body(request), reads=True))
        ask = messages.read_prompt(fields)
        metrics.saw_unknown(request.url.path, fields.unknown)
        prompts = await unless_gone(request, encode(service, ask))
        return JSONResponse({"input_tokens": len(prompts[0])})

    return handle


def _answering(
    api: Api, service: Service, settings: Settings, metrics: Metrics
) -> Callable[[Request], Awaitable[Response]]:
    """The handler of an endpoint that answers."""

    async def handle(request: Request) -> Response:
        worker = service.worker
        if sum(worker.load) >= worker.most:  # before a body is read that nobody has time for
            raise worker.queue_full()
        fields = parse_body(await unless_gone(request, read_body(request), reads=True))
        ask = api.read(fields)
        stream = fields.flag("stream")
        reply = api.reply(service, fields, ask)
        metrics.saw_unknown(request.url.path, fields.unknown)
        answers = Answers(service, ask, settings.seconds, metrics.answered)
        if stream:
            await unless_gone(request, answers.__aenter__())
            return _Stream(_streamed(api, reply, answers), answers)

        async def whole() -> dict[str, Any]:
            async with answers:
                return await reply.whole(answers)

        return JSONResponse(await unless_gone(request, whole()))

    return handle


class _Stream(StreamingResponse):
    """Server-sent events; whatever ends them, the answers end too."""

    def __init__(self, events: AsyncIterator[str], answers: Answers) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answers.leave()


async def _streamed(api: Api, reply: Reply, answers: Answers) -> AsyncIterator[str]:
    try:
        async for event in reply.stream(answers):
            yield event
    except Exception as error:
        found = as_request_error(error)
        yield reply.failed(found, error_type(found.status))


async def read_body(request: Request) -> bytes:
    """The body of a request, within its limits."""
    length = request.headers.get("content-length", "0")
    body = bytearray()
    if not length.isdecimal() or int(length) > MOST_BYTES:
        raise _too_large()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > MOST_BYTES:
                    raise _too_large()
    except TimeoutError:
        raise RequestError(
            f"The body did not arrive within {BODY_SECONDS:g} s.", status=408
        ) from None
    return bytes(body)


def _too_large() -> RequestError:
    return RequestError(f"The body is larger than {MOST_BYTES >> 20} MiB.", status=413)


async def unless_gone(request: Request, work: Awaitable[T], reads: bool = False) -> T:
    """The result of some work; it is cancelled if the client leaves before.

    Work that `reads` the body finds out by itself.

    Raises:
        ClientGone: if the client left.
    """
    if reads:
        return await work

    async def leaving() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    doing, gone = asyncio.ensure_future(work), asyncio.ensure_future(leaving())
    try:
        await asyncio.wait({doing, gone}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise ClientGone
    finally:
        for task in (doing, gone):
            task.cancel()
        await asyncio.gather(doing, gone, return_exceptions=True)


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
        except ClientGone:
            pass
        except Exception as error:
            if status != 499:  # the response has begun; the connection ends
                raise
            found = as_request_error(error)
            if found.status == 500:
                self._settings.log(f"{request.url.path}: {error!r}")
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
        found = [hmac.compare_digest(given.encode(), key.encode()) for key in settings.keys]
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
        return (messages_api() if anthropic else chat_api()).error


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # such as half of an IPv6 address
        return ""


async def _of_router(request: Request, error: HTTPException) -> Response:
    """Say what the router has to say as all other errors are said."""
    if error.status_code == 404:
        raise RequestError(f"There is no {request.url.path!r:.200} here.", status=404)
    if error.status_code == 405:
        message = f"{request.url.path} does not take {request.method!r:.20}."
        raise RequestError(message, status=405)
    raise RequestError(error.detail, status=error.status_code)
