"""Our server beside mlx-lm's on the same weights: time to the first token, and tokens a second.

    python benchmarks/serve_load.py demo
    python benchmarks/serve_load.py FOLDER --clients 1,8 --tokens 128 --rounds 3

All servers are up, and take turns within each round: a machine that slows down slows all of them.
The weights are converted once, to the layout that stock mlx-lm loads. Greedy, streamed; each client
asks one question after another.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

QUESTIONS = (
    "If a rectangle has length 12 and width 7, what is its area?",
    "Write a short story about a fox.",
    "Describe Ann, who is 7 years old, as JSON.",
    "What is 17 times 6?",
    "Write a Python function that adds two numbers.",
    "How can I sleep better?",
    "Name three rivers.",
    "What comes after Tuesday?",
)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        port: int = own.getsockname()[1]
        return port


def ask(port: int, question: str, tokens: int) -> tuple[float, float, int]:
    """Seconds to the first text and to the end, and the tokens written."""
    body = {
        "model": "default_model",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    start, first, written = time.perf_counter(), 0.0, 0
    headers = {"Content-Type": "application/json"}
    link.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    response = link.getresponse()
    if response.status != 200:
        raise SystemExit(response.read().decode())
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[6:])
        if chunk.get("usage"):
            written = chunk["usage"]["completion_tokens"]
        said = any(choice["delta"].get("content") for choice in chunk["choices"])
        first = first or (time.perf_counter() - start if said else 0.0)
    link.close()
    return first, time.perf_counter() - start, written


def load(port: int, clients: int, tokens: int) -> tuple[float, float]:
    """(median seconds to the first token, tokens a second of all) under a load."""
    found: list[tuple[float, float, int]] = []
    each = max(2, len(QUESTIONS) // clients)

    def client(number: int) -> None:
        for n in range(each):
            question = QUESTIONS[(number + n * clients) % len(QUESTIONS)]
            # No two prompts are alike, or what is measured are the prompt caches.
            found.append(ask(port, f"{question} ({time.time_ns() % 997})", tokens))

    threads = [threading.Thread(target=client, args=[n]) for n in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    firsts = [first for first, _, _ in found if first]
    return statistics.median(firsts), sum(n for _, _, n in found) / seconds


class Server:
    """A server that was started, once it answers."""

    def __init__(self, command: list[str]) -> None:
        self.port = free_port()
        self._process = subprocess.Popen(
            [*command, "--port", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while True:
            if self._process.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended at once")
            try:
                link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                link.request("GET", "/v1/models")
                if link.getresponse().status == 200:
                    break
            except OSError:
                time.sleep(0.3)
        for _ in range(2):
            ask(self.port, "Hello", 8)

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--clients", default="1,8")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-calibrate", action="store_true", help="assume costs (a quick try)")
    given = parser.parse_args()
    own = [sys.executable, "-m", "orthrus_mlx.cli"]
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "model"
        subprocess.run([*own, "convert", "--model", given.model, "--mlx-path", plain], check=True)
        more = ["--no-calibrate"] if given.no_calibrate else []
        makers: dict[str, list[str]] = {
            "mlx-lm": [sys.executable, "-m", "mlx_lm", "server", "--model", str(plain)],
            "ours, auto": [*own, "serve", str(plain), *more],
            "ours, AR": [*own, "serve", str(plain), "--mode", "ar", *more],
        }
        servers = {name: Server(command) for name, command in makers.items()}
        found: dict[tuple[str, int], list[tuple[float, float]]] = {}
        try:
            for _ in range(given.rounds):
                for clients in map(int, given.clients.split(",")):
                    for name, server in servers.items():
                        times = load(server.port, clients, given.tokens)
                        found.setdefault((name, clients), []).append(times)
        finally:
            for server in servers.values():
                server.stop()
    print("| server | clients | first token, ms | tokens/s | over mlx-lm |")
    print("|---|---:|---:|---:|---:|")
    for (name, clients), rounds in sorted(found.items(), key=lambda item: item[0][1]):
        theirs: Any = [speed for _, speed in found["mlx-lm", clients]]
        ratios = [mine / other for (_, mine), other in zip(rounds, theirs, strict=True)]
        first = statistics.median(seconds for seconds, _ in rounds)
        speed = statistics.median(speed for _, speed in rounds)
        ratio = statistics.median(ratios)
        print(f"| {name} | {clients} | {first * 1e3:.0f} | {speed:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
