"""`orthrus-mlx serve`: the HTTP API of OpenAI and Anthropic, for editors, agents and scripts."""

import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from . import habits, options
from .options import examples

EXAMPLES = examples(
    "orthrus-mlx serve",
    "orthrus-mlx serve chiennv/Orthrus-Qwen3-1.7B --port 8000",
    "ORTHRUS_MLX_API_KEY=secret orthrus-mlx serve mlx/Orthrus-4B-4bit --host 0.0.0.0",
    "curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' "
    """-d '{"messages": [{"role": "user", "content": "Hello!"}]}'""",
)
_SERVER, _LIMITS, _DEFAULTS = "Server", "Limits", "Defaults of requests"


def serve(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="As --model.", show_default=False),
    ] = None,
    model: options.ModelOption = None,
    revision: options.RevisionOption = None,
    adapter_path: options.AdapterPathOption = None,
    tune: options.TuneOption = True,
    chat_template_config: Annotated[
        str | None,
        typer.Option(
            "--chat-template-config",
            "--chat-template-args",
            metavar="JSON",
            help="Arguments for the chat template, as a JSON object; a request's own come on top.",
            show_default=False,
            rich_help_panel="Model",
        ),
    ] = None,
    use_default_chat_template: Annotated[
        bool,
        typer.Option(
            "--use-default-chat-template",
            help="Where the checkpoint has no chat template, use that of Qwen3's chats (ChatML).",
            rich_help_panel="Model",
        ),
    ] = False,
    think: options.ThinkOption = None,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. Any but this machine's own needs an API key.",
            rich_help_panel=_SERVER,
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            max=65535,
            help="Port to listen on; 0 for a free one.",
            rich_help_panel=_SERVER,
        ),
    ] = 8080,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="A key that requests must bring; may be repeated. Without it, the environment "
            "variable ORTHRUS_MLX_API_KEY is the key: other users of this machine can read a "
            "command's options, but not its environment.",
            show_default=False,
            rich_help_panel=_SERVER,
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-origin",
            "--allowed-origins",
            metavar="ORIGIN",
            help="A web page's origin, such as http://localhost:3000, that may ask; '*' for all. "
            "May be repeated.",
            show_default=False,
            rich_help_panel=_SERVER,
        ),
    ] = None,
    concurrency: Annotated[
        int,
        typer.Option(
            "--concurrency",
            "--decode-concurrency",
            metavar="N",
            min=1,
            max=256,
            help="Answers written at once.",
            rich_help_panel=_LIMITS,
        ),
    ] = 8,
    queue: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Answers that may wait for that; beyond, requests are refused (429).",
            rich_help_panel=_LIMITS,
        ),
    ] = 64,
    timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=1.0,
            help="Time for one request, waiting included.",
            rich_help_panel=_LIMITS,
        ),
    ] = 1800.0,
    prompt_cache_bytes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Memory for KV caches of earlier prompts, in bytes. "
            "[dim]\\[default: a quarter of what is free][/dim]",
            show_default=False,
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    max_tokens: Annotated[
        int,
        typer.Option(
            "--max-tokens",
            "-m",
            metavar="N",
            min=-1,
            callback=options._not_zero,
            help="The longest answer where a request does not say; -1 for all that fits.",
            rich_help_panel=_DEFAULTS,
        ),
    ] = -1,
    temp: Annotated[
        float | None,
        typer.Option(
            "--temp",
            "--temperature",
            metavar="X",
            min=0.0,
            help="Sampling temperature where a request does not say. "
            "[dim]\\[default: the checkpoint's, else 1][/dim]",
            show_default=False,
            rich_help_panel=_DEFAULTS,
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            min=0.0,
            max=1.0,
            help="The same of top_p.",
            show_default=False,
            rich_help_panel=_DEFAULTS,
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="The same of top_k.",
            show_default=False,
            rich_help_panel=_DEFAULTS,
        ),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            min=0.0,
            max=1.0,
            help="The same of min_p.",
            show_default=False,
            rich_help_panel=_DEFAULTS,
        ),
    ] = None,
    mode: options.ModeOption = options.Mode.auto,
    numerics: options.NumericsOption = options.Numerics.fast,
    prefill_step_size: options.PrefillStepSizeOption = 2048,
    calibrate: options.CalibrateOption = True,
    verbose: Annotated[
        bool, typer.Option("--verbose/--quiet", help="Note each request on stderr.")
    ] = True,
) -> None:
    """Serve a model to editors, agents and scripts.

    The APIs are OpenAI's (chat completions, completions, responses) and Anthropic's (messages).
    A page to chat in is at the server's own address. Many requests are answered at once. With a
    seed a request always gets the same answer.
    """
    if name is not None and options.typed_model(context, model) not in (None, name):
        raise typer.BadParameter("MODEL and --model name two models", param_hint="--model")
    asked = name or model
    template = options.parse_template_config(chat_template_config)
    # Not typer's `envvar`, which would take each word of a key for a key.
    keys = [key for key in api_key or [os.environ.get("ORTHRUS_MLX_API_KEY", "")] if key]
    try:
        from orthrus_mlx.server.guard import LOOPBACK, Settings
        from orthrus_mlx.server.run import listen
        from orthrus_mlx.server.run import serve as run
    except ModuleNotFoundError as error:
        from orthrus_mlx.errors import ServerError

        if error.name not in ("starlette", "uvicorn"):
            raise
        raise ServerError(
            f"The server needs {error.name}: pip install 'orthrus-mlx[serve]'."
        ) from None
    local = host in LOOPBACK
    if not local and not keys:
        raise typer.BadParameter(
            "others can reach this address: set a key with ORTHRUS_MLX_API_KEY or --api-key",
            param_hint="--host",
        )
    origins = _origins(allow_origin or ())
    taken = listen(host, port)
    try:
        service = _load(
            asked,
            revision,
            adapter_path,
            concurrency,
            queue,
            prompt_cache_bytes,
            calibrate,
            quiet=not verbose,
            tune=tune,
        )
        if use_default_chat_template:
            habits.use_default_chat_template(service.tokenizer)
    except BaseException:
        taken.close()
        raise
    given = {"temperature": temp, "top_p": top_p, "top_k": top_k, "min_p": min_p}
    service.options |= {key: value for key, value in given.items() if value is not None}
    service.options |= {
        "max_tokens": max_tokens,
        "mode": mode.value,
        "numerics": numerics.value,
        "prefill_step_size": prefill_step_size,
    }
    service.template |= template
    if think is not None:
        service.template["enable_thinking"] = think

    from .console import note, stderr_console

    notes = stderr_console()
    lines = stderr_console(quiet=not verbose)
    settings = Settings(
        hosts=LOOPBACK if local else (),
        keys=keys,
        origins=origins,
        seconds=timeout,
        log=lambda line: note(lines, line),
    )
    url = _url(host, taken.getsockname()[1])

    def ready() -> None:
        _banner(notes, url, service, keys)

    code = run(service, settings, taken, ready, lambda line: note(notes, line, "yellow"))
    if code:
        raise typer.Exit(code)


def _origins(given: Sequence[str]) -> list[str]:
    """Origins of pages, as browsers send them; commas part several, as in mlx-lm."""
    origins = [one.strip().rstrip("/") for text in given for one in text.split(",")]
    for origin in origins:
        if origin not in ("*", "null") and not re.fullmatch(r"[\w.+-]+://[^/?#@\s]+", origin):
            raise typer.BadParameter(
                f"{origin!r} is no origin: give a scheme, a host, and its port if it has one, "
                "such as http://localhost:3000",
                param_hint="--allow-origin",
            )
    return origins


def _load(
    model: str | None,
    revision: str | None,
    adapter_path: Any,
    concurrency: int,
    queue: int,
    prefix_memory: int | None,
    calibrate: bool,
    *,
    quiet: bool,
    tune: bool,
) -> Any:
    """Load a model on the engine's own thread, and measure the device where that is due."""
    from orthrus_mlx.checkpoint.config import read_json
    from orthrus_mlx.checkpoint.read import resolve
    from orthrus_mlx.server.ask import Service, sampling_defaults
    from orthrus_mlx.server.run import end, wait_for
    from orthrus_mlx.server.worker import Worker

    from .console import stderr_console
    from .progress import probe_bar

    worker = Worker(
        lambda: options.read_model(
            model, revision, quiet=quiet, adapter_path=adapter_path, tune=tune
        ),
        concurrency=concurrency,
        queue=queue,
        prefix_memory=prefix_memory,
        calibrate=calibrate,
    )
    try:
        with ExitStack() as waiting:
            waiting.enter_context(options.loading(model, quiet))
            measuring = probe_bar(stderr_console(quiet=quiet))

            def show(stage: str, done: int, total: int) -> None:
                if stage != "load":
                    waiting.close()  # two displays at once are one too many
                    measuring(done, total)

            worker.start()
            with measuring:
                wait_for(worker, show)
            worker.show = show
    except BaseException as error:
        told = error.code if isinstance(error, SystemExit) else None
        end(worker, told if isinstance(told, int) else 130)
        raise
    folder = resolve(model or options.DEMO, revision)
    path = folder / "generation_config.json"
    defaults = sampling_defaults(read_json(path) if path.is_file() else {})
    # A folder is called by its name: its path is nobody's business.
    name = model if model and not Path(model).expanduser().exists() else folder.name
    return Service(worker, name, defaults)


def _url(host: str, port: int) -> str:
    """The address as this machine reaches it."""
    own = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{own}]:{port}" if ":" in own else f"http://{own}:{port}"


def _banner(notes: Any, url: str, service: Any, keys: list[str]) -> None:
    from .console import note

    key = " -H 'Authorization: Bearer '$ORTHRUS_MLX_API_KEY" if keys else ""
    exact = "are exact, bit for bit" if service.worker.exact else "repeat up to near-ties"
    note(notes, f"Serving {service.name} at {url} (a page to chat in), API at {url}/v1", "bold")
    note(
        notes,
        f"""Try `curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' """
        """-d '{"messages": [{"role": "user", "content": "Hello!"}]}'`""",
    )
    note(notes, f"Requests with a seed {exact}. Ctrl-C ends the server.")
