"""Renders chat templates in a process of its own, which `chat/prompt.py` starts and may kill.

A script, not part of the package: it imports as little as it can.
"""

import json
import resource
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MEMORY = 1 << 30  # bytes beyond what the process takes when it starts (Linux; macOS has no limit)


def main() -> None:
    """Answer requests until the other end closes."""
    number, sys.path[:] = json.loads(sys.argv[1])
    connection = Connection(number)
    from transformers.utils.chat_template_utils import render_jinja_template

    _limit_memory()
    connection.send_bytes(b"ready")
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except EOFError:
            return
        _limit_time(request["seconds"])
        try:
            rendered: Any = render_jinja_template(
                [request["messages"]], chat_template=request["template"], **request["variables"]
            )
            text = rendered[0][0]
            reply = {"text": text} if len(text) <= request["longest"] else {"too_long": ""}
        except MemoryError:
            reply = {"too_long": ""}
        except Exception as error:
            reply = {"error": str(error)[:1000] or type(error).__name__}
        connection.send_bytes(json.dumps(reply).encode())


def _limit_memory() -> None:
    sizes = Path("/proc/self/statm")
    if sizes.exists():
        taken = int(sizes.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))


def _limit_time(seconds: int) -> None:
    """End the process after so much more work, even if who asked for it has gone."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(used.ru_utime + used.ru_stime) + seconds + 2
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


if __name__ == "__main__":
    main()
