"""Start `orthrus-mlx serve`, ask it one question, stop it by Ctrl-C.

    python .github/scripts/ask_server.py [PROGRAM]

Exit code 0 if it answered and left. All traffic stays on this machine.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

SECONDS = 180.0  # to start, and to answer


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    """The JSON reply of the server."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=SECONDS) as reply:
        return json.load(reply)


def main() -> int:
    """Start, ask, stop."""
    program = sys.argv[1] if len(sys.argv) > 1 else "orthrus-mlx"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, start = f"http://127.0.0.1:{port}/v1", time.monotonic()
    server = subprocess.Popen([program, "serve", "--port", str(port)])
    try:
        while True:
            try:
                model = ask(f"{url}/models")["data"][0]["id"]
                break
            except (urllib.error.URLError, ConnectionError):
                if server.poll() is not None or time.monotonic() - start > SECONDS:
                    print("The server does not start.")
                    return 1
                time.sleep(0.5)
        question = [{"role": "user", "content": "What is 3 + 4?"}]
        body = {"model": model, "messages": question, "max_tokens": 16}
        answer = ask(f"{url}/chat/completions", body)["choices"][0]["message"]["content"]
        print(f"{model}: {answer!r}")
        server.send_signal(signal.SIGINT)
        print(f"The server left with code {server.wait(SECONDS)}.")
        return not answer
    finally:
        if server.poll() is None:
            server.kill()


if __name__ == "__main__":
    sys.exit(main())
