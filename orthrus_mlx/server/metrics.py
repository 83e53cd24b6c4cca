"""Counts for /metrics, in the text format of Prometheus."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from .events import Figures
from .worker import Worker

MOST_NAMES = 200  # of unknown fields that are told apart
PREFIX = "orthrus_mlx_"


class Metrics:
    """What the server has done.

    Attributes:
        requests: finished requests by (endpoint, status).
        unknown: fields that no endpoint knows, by name.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        """Count; `log` takes what is to be said once."""
        self._log = log
        self._started = time.time()
        self.requests: Counter[tuple[str, int]] = Counter()
        self.unknown: Counter[str] = Counter()
        self._seconds = 0.0
        self._answers = 0

    def saw_unknown(self, endpoint: str, names: list[str]) -> None:
        """Count fields that nothing is known of, and name each once in the log."""
        for name in names:
            name = "".join(c if c.isprintable() else "?" for c in name[:64])
            if name not in self.unknown:
                if len(self.unknown) >= MOST_NAMES:
                    name = "(others)"
                else:
                    self._log(f"{endpoint}: the field {name!r} is unknown, and was ignored.")
            self.unknown[name] += 1

    def answered(self, figures: Figures) -> None:
        """Count an answer."""
        self._answers += 1
        self._seconds += figures.seconds

    def text(self, worker: Worker) -> str:
        """All counts, as Prometheus reads them."""
        running, waiting = worker.load
        totals, memory = worker.totals, worker.memory
        lines: list[str] = []

        def put(name: str, kind: str, note: str, *values: tuple[str, float]) -> None:
            lines.append(f"# HELP {PREFIX}{name} {note}")
            lines.append(f"# TYPE {PREFIX}{name} {kind}")
            lines.extend(f"{PREFIX}{name}{labels} {value:.17g}" for labels, value in values)

        requests = sorted(self.requests.items())
        put(
            "requests_total",
            "counter",
            "Finished requests.",
            *(
                (f'{{endpoint="{_escaped(where)}",status="{status}"}}', n)
                for (where, status), n in requests
            ),
        )
        put(
            "unknown_fields_total",
            "counter",
            "Fields of requests that were ignored.",
            *((f'{{field="{_escaped(name)}"}}', n) for name, n in sorted(self.unknown.items())),
        )
        for name, note, value in (
            ("answers_total", "Answers that came to their end.", self._answers),
            ("answer_seconds_total", "Seconds in which they were written.", self._seconds),
            ("prompt_tokens_total", "Prompt tokens.", totals.prompt_tokens),
            ("cached_tokens_total", "Those found in earlier KV caches.", totals.cached_tokens),
            ("completion_tokens_total", "Tokens written.", totals.completion_tokens),
            ("forward_passes_total", "Passes over the layers.", totals.forward_passes),
            ("drafted_tokens_total", "Drafts verified.", totals.drafted_tokens),
            ("accepted_tokens_total", "Drafts accepted.", totals.accepted_tokens),
            ("cancelled_total", "Answers that their clients left.", totals.cancelled),
            ("failed_steps_total", "Passes that failed as a whole.", totals.failed_steps),
        ):
            put(name, "counter", note, ("", value))
        for name, note, value in (
            ("running", "Answers being written.", running),
            ("waiting", "Answers that wait.", waiting),
            ("memory_bytes", "MLX's arrays.", memory[0]),
            ("peak_memory_bytes", "Most of that so far.", memory[1]),
            ("prefix_bytes", "KV caches of earlier prompts.", memory[2]),
            ("healthy", "Whether the engine comes on.", worker.healthy),
            ("start_time_seconds", "When the server began, since 1970.", self._started),
        ):
            put(name, "gauge", note, ("", value))
        return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """A label's value."""
    return text.replace("\\", r"\\").replace('"', r"\"")
