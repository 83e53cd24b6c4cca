"""A Hugging Face Hub of one's own: serves folders over HTTP on this machine, and counts bytes."""

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = hashlib.sha1(b"the only commit").hexdigest()
REVISIONS = ("main", COMMIT)


class FakeHub:
    """Repositories by id, each a folder; what was asked for, and how many bytes were sent."""

    def __init__(self) -> None:
        self.repos: dict[str, Path] = {}
        self.requested: list[str] = []
        self.sent: dict[str, int] = {}
        self.fail_after: int | None = None  # weight files break off at this byte
        self.url = ""

    @contextmanager
    def serve(self) -> Iterator["FakeHub"]:
        hub = self

        class Handler(_Handler):
            shop = hub

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    shop: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        if path.startswith("api/models/"):
            self._describe(path.removeprefix("api/models/"))
        else:
            owner, name, _, revision, *rest = path.split("/")
            self._send_file(f"{owner}/{name}", revision, "/".join(rest), body)

    def _describe(self, path: str) -> None:
        owner, name, *rest = path.split("/")
        repo = f"{owner}/{name}"
        folder = self.shop.repos.get(repo)
        if folder is None:
            return self._error(404, "RepoNotFound")
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in REVISIONS:
            return self._error(404, "RevisionNotFound")
        files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        if rest and rest[0] == "tree":
            return self._send_json([_entry(folder, file) for file in files])
        siblings = [{"rfilename": file} for file in files]
        return self._send_json({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings})

    def _send_file(self, repo: str, revision: str, file: str, body: bool) -> None:
        folder = self.shop.repos.get(repo)
        if folder is None:
            return self._error(404, "RepoNotFound")
        if revision not in REVISIONS:
            return self._error(404, "RevisionNotFound")
        if not (folder / file).is_file():
            return self._error(404, "EntryNotFound")
        content = (folder / file).read_bytes()
        start, end = 0, len(content)
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1 if last else end, end)
        if body:
            self.shop.requested.append(file)
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.end_headers()
        if not body:
            return None
        limit = self.shop.fail_after
        if limit is not None and file.endswith(".safetensors") and end > limit:
            self.wfile.write(content[start : max(start, limit)])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return None
        self.shop.sent[file] = self.shop.sent.get(file, 0) + end - start
        self.wfile.write(content[start:end])
        return None

    def _send_json(self, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _entry(folder: Path, file: str) -> dict[str, object]:
    content = (folder / file).read_bytes()
    oid = hashlib.sha1(content).hexdigest()
    return {"type": "file", "path": file, "size": len(content), "oid": oid}
