"""Routes: which endpoint reads what, and how its answers leave."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Protocol, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ..errors import RequestError
from . import chat, completions, messages, messages_reply, page, responses
from .answers import Answers, aside, encode
from .ask import Ask, Service
from .fields import Fields, parse_body
from .guard import MESSAGES, ClientGone, Guard, Settings, error_type
from .json_response import JSONResponse
from .metrics import Metrics

MOST_BYTES = 32 << 20  # of a request's body
BODY_SECONDS = 60.0  # in which it is to arrive

T = TypeVar("T")


class Reply(Protocol):
    """How an API writes its answers."""

    async def whole(self, answers: Answers) -> dict[str, Any]:
        """The response as one object."""

    def stream(self, answers: Answers) -> AsyncIterator[str]:
        """The response as server-sent events."""

    def failed(self, error: RequestError, kind: str) -> str:
        """The event that ends a stream before its time."""


Read = Callable[[Fields], Ask]  # what a body asks for
Replies = Callable[[Service, Fields, Ask], Reply]

# The endpoints that answer.
ANSWERING: dict[str, tuple[Read, Replies]] = {
    "/v1/chat/completions": (chat.read, chat.Reply),
    "/v1/completions": (completions.read, completions.Reply),
    "/v1/responses": (responses.read, responses.Reply),
    MESSAGES: (messages.read, messages_reply.Reply),
}


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
        Route(path, _answering(*both, service, settings, metrics), methods=["POST"])
        for path, both in ANSWERING.items()
    ]
    routes += [
        Route(
            f"{MESSAGES}/count_tokens",
            _counting(service, metrics),
            methods=["POST"],
        ),
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


def _counting(service: Service, metrics: Metrics) -> Callable[[Request], Awaitable[Response]]:
    """The handler that counts the tokens of a message's prompt."""

    async def handle(request: Request) -> Response:
        fields = await aside(parse_body, await read_body(request))
        ask = await aside(messages.read_prompt, fields)
        metrics.saw_unknown(request.url.path, fields.unknown)
        prompts = await unless_gone(request, encode(service, ask))
        return JSONResponse({"input_tokens": len(prompts[0])})

    return handle


def _answering(
    read: Read, reply_with: Replies, service: Service, settings: Settings, metrics: Metrics
) -> Callable[[Request], Awaitable[Response]]:
    """The handler of an endpoint that answers."""

    async def handle(request: Request) -> Response:
        check_room = service.worker.check_room
        check_room(1)  # before a body is read that nobody has time for
        fields = await aside(parse_body, await read_body(request))
        ask = await aside(read, fields)
        check_room(ask.n * max(1, len(ask.prompts)))  # before all of them are encoded
        stream = fields.flag("stream")
        reply = reply_with(service, fields, ask)
        metrics.saw_unknown(request.url.path, fields.unknown)
        answers = Answers(service, ask, settings.seconds, metrics.answered)
        if stream:
            await unless_gone(request, answers.__aenter__())
            tell = partial(settings.told, path=request.url.path)
            return _Stream(_streamed(reply, answers, tell), answers)

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


async def _streamed(
    reply: Reply, answers: Answers, tell: Callable[[Exception], RequestError]
) -> AsyncIterator[str]:
    """The events of a reply; of an error the client gets what `tell` says."""
    try:
        async for event in reply.stream(answers):
            yield event
    except Exception as error:
        found = tell(error)
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


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of some work; it is cancelled if the client leaves before.

    Raises:
        ClientGone: if the client left.
    """

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


async def _of_router(request: Request, error: HTTPException) -> Response:
    """Say what the router has to say as all other errors are said."""
    if error.status_code == 404:
        raise RequestError(f"There is no {request.url.path!r:.200} here.", status=404)
    if error.status_code == 405:
        message = f"{request.url.path} does not take {request.method!r:.20}."
        raise RequestError(message, status=405)
    raise RequestError(error.detail, status=error.status_code)
