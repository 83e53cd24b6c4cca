"""The connections between rank 0 and the others, apart from MLX's own: words go there, and deaths.

MLX's collectives wait for ever, or raise after a while, when a rank is gone; which of both depends
on the backend. So each rank also has a TCP connection to rank 0, read by a thread. It closes when a
process ends, and the system's keep-alive packets tell of a machine that has vanished. Either way
this process ends: an operation of MLX that waits for a dead rank cannot be called back.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import DistributedError

Word = dict[str, Any]

SILENCE = 4  # seconds without a sign of life from a machine after which it is taken for dead
FAREWELL = 3.0  # seconds that rank 0 waits for the others to say what they did
RACE = 2.0  # seconds within which a connection closes after MLX found its own one closed
STUCK = 30.0  # seconds after which a rank that was sent home ends, whatever it waits for
PATIENCE = 60.0  # seconds in which all ranks have to connect
LARGEST_HELLO = 1 << 16
ADVICE = (
    "Let Python accept connections in the firewall of the first machine, or name an address of it "
    "that all others reach: mlx.launch --env ORTHRUS_MLX_HOST=ADDRESS."
)

_ending = threading.Lock()


class Link:
    """One connection: words sent are whole lines of JSON, words received wait in `inbox`.

    Attributes:
        rank: who is at the other end.
        name: its host.
        facts: what it said of itself.
        inbox: words that have come.
    """

    def __init__(
        self,
        connection: socket.socket,
        rank: int,
        facts: Word,
        lost: Callable[[Link], None],
        failed: Callable[[Link, str], None],
    ):
        self.rank, self.facts = rank, facts
        self.name = str(facts.get("host", "?"))
        self.inbox: queue.SimpleQueue[Word] = queue.SimpleQueue()
        self.leaving = False
        self._connection, self._lost, self._failed = connection, lost, failed
        self._sending = threading.RLock()  # a finalizer may send while this thread does
        keep_alive(connection)

    def watch(self) -> None:
        """Read words from now on, and notice the end."""
        threading.Thread(target=self._read, name=f"rank {self.rank}", daemon=True).start()

    def send(self, word: Word) -> None:
        """Send a word; if the other end is gone, this process ends."""
        line = json.dumps(word).encode() + b"\n"
        try:
            with self._sending:
                self._connection.sendall(line)
        except OSError:
            if not self.leaving:
                self._lost(self)

    def close(self) -> None:
        """Hang up."""
        self.leaving = True
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in self._connection.makefile("rb"):
                word: Word = json.loads(line)
                if word.get("op") == "end":  # another rank is dead, and rank 0 says so
                    end_process()
                if word.get("op") == "failed":
                    self._failed(self, str(word.get("why")))
                if word.get("op") == "bye":
                    self.leaving = True
                self.inbox.put(word)
        if not self.leaving:
            self._lost(self)
        elif not self.rank:  # rank 0 has gone home; nothing that waits for it comes to an end
            time.sleep(STUCK)
            end_process()


def keep_alive(connection: socket.socket) -> None:
    """Have the system notice within `SILENCE` seconds that the other machine is gone."""
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    wanted = {
        "TCP_KEEPIDLE": 1,
        "TCP_KEEPALIVE": 1,  # macOS's name for it
        "TCP_KEEPINTVL": 1,
        "TCP_KEEPCNT": SILENCE - 1,
        "TCP_USER_TIMEOUT": SILENCE * 1000,  # for words that nobody acknowledges
    }
    options = {getattr(socket, name, None): value for name, value in wanted.items()}
    if sys.platform == "darwin":
        options[0x80] = SILENCE  # TCP_RXT_CONNDROPTIME, the same on macOS; Python does not name it
    for option, value in options.items():
        if option is not None:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, option, value)


def end_process(line: str = "") -> None:
    """End this process now, with code 1 and at most one line, whatever its other threads do."""
    if not _ending.acquire(blocking=False):
        time.sleep(60)  # another thread is at it
    if line:
        with contextlib.suppress(OSError):
            os.write(2, f"\nerror: {line}\n".encode(errors="backslashreplace"))  # below an answer
    # Text that was written may still be on its way; nobody waits for a reader that has gone.
    flushing = threading.Thread(target=_flush, daemon=True)
    flushing.start()
    flushing.join(0.5)
    _restore_terminal()
    os._exit(1)


def explain_first() -> None:
    """Let a lost connection be told before what MLX raises because of it ends this process."""
    before = sys.excepthook

    def patient(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if issubclass(kind, RuntimeError):
            time.sleep(RACE)  # `end_process` is at it, if a rank is lost
        before(kind, error, trace)

    sys.excepthook = patient


def end_with_launcher() -> None:
    """End this process as SIGTERM does once its launcher is gone: `mlx.launch` tells nobody.

    A launcher gives its ranks a pipe to read from; without one, a person started this process.
    """
    launcher = os.getppid()
    try:
        if not stat.S_ISFIFO(os.fstat(0).st_mode):
            return
    except OSError:
        return

    def watch() -> None:
        while os.getppid() == launcher:  # to poll the pipe would wait for ever on macOS
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(STUCK)  # it may wait in MLX, where no signal is heard
        end_process()

    threading.Thread(target=watch, name="launcher", daemon=True).start()


@contextlib.contextmanager
def killed_by_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C end the process in a call that keeps Python from seeing it."""
    before: Any = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _flush() -> None:
    with contextlib.suppress(Exception):
        sys.stdout.flush()


_terminal: Any = None


def remember_terminal() -> None:
    """Note how the terminal is set, for `end_process`."""
    global _terminal
    with contextlib.suppress(Exception):
        import termios

        if sys.stdin.isatty():
            _terminal = termios.tcgetattr(sys.stdin.fileno())


def _restore_terminal() -> None:
    with contextlib.suppress(Exception):
        import termios

        if _terminal is not None:
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, _terminal)


def listen(local: bool) -> socket.socket:
    """A socket that the other ranks connect to; `local` if all are on this machine."""
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.bind(("127.0.0.1" if local else "", 0))
    server.listen(64)
    return server


def accept(server: socket.socket, token: str, ranks: int) -> dict[int, tuple[socket.socket, Word]]:
    """The connections of all other ranks, who prove with `token` that they belong here.

    Raises:
        DistributedError: naming the ranks that did not come.
    """
    found: dict[int, tuple[socket.socket, Word]] = {}
    end = time.monotonic() + PATIENCE
    while len(found) < ranks - 1:
        server.settimeout(max(0.01, end - time.monotonic()))
        try:
            connection, _ = server.accept()
        except TimeoutError:
            missing = sorted(set(range(1, ranks)) - found.keys())
            raise DistributedError(
                f"Rank {missing[0]} did not connect to rank 0. {ADVICE}"
            ) from None
        hello = _hello(connection)
        rank = hello.get("rank")
        if hello.get("token") == token and isinstance(rank, int) and 0 < rank < ranks:
            found[rank] = connection, hello
        else:  # a stranger
            connection.close()
    server.close()
    return found


def _hello(connection: socket.socket) -> Word:
    """The first line that comes over a connection; nothing if there is none for a while."""
    with contextlib.suppress(OSError, ValueError):
        connection.settimeout(5)
        line = b""
        while not line.endswith(b"\n") and len(line) < LARGEST_HELLO:
            byte = connection.recv(1)  # no more than the line: words may follow
            if not byte:
                break
            line += byte
        word = json.loads(line)
        return word if isinstance(word, dict) else {}
    return {}


def connect(addresses: list[str], port: int, hello: Word) -> socket.socket:
    """Connect to rank 0 at the first of its addresses that answers.

    Raises:
        DistributedError: if none does.
    """
    for address in addresses:
        with contextlib.suppress(OSError):
            connection = socket.create_connection((address, port), timeout=5)
            connection.sendall(json.dumps(hello).encode() + b"\n")
            return connection
    raise DistributedError(
        f"Rank 0 does not answer at {', '.join(addresses)} (port {port}). {ADVICE}"
    )
