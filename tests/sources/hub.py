"""A hub of our own: enough of the Hugging Face hub's HTTP API to fetch a model from."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" * 6 + "0000"
LARGE = (".gguf", ".safetensors")


class Hub(ThreadingHTTPServer):
    """
    Serves repositories at `endpoint`, and counts what it serves.

    Attributes:
        commit: What ``main`` is.
        repos: Contents by repository and file name; a test may change them.
        gated: Repositories nobody may read without the token ``letmein``.
        cut: How to break the connection after how many bytes of a file, and how many times.
        served: Bytes of files sent.
        ranges: File and first byte of each GET of a file.
        bare: Leave sizes and hashes out of the listing, as some mirrors do.
        status: Answer everything with this.
        damaged: Send zeros for the bytes of a file.
        cdn: Send who wants a file to another host, as the real hub does.
        keys: The Authorization of each request the other host got.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commit = COMMIT
        self.repos: dict[str, Mapping[str, bytes]] = {}
        self.gated: set[str] = set()
        self.cut: tuple[Literal["fin", "rst"], int, int] = ("fin", 0, 0)
        self.served = 0
        self.ranges: list[tuple[str, int]] = []
        self.listings = 0
        self.bare = False
        self.status = 0
        self.damaged = False
        self.cdn = False
        self.keys: list[str | None] = []
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def stop(self) -> None:
        if self._thread.is_alive():
            self.shutdown()
            self._thread.join()
            self.server_close()
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request, client_address) -> None:
        self._open.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request, client_address) -> None:
        """A client that leaves is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        parts = unquote(url.path).strip("/").split("/")
        if self.server.status:
            self._refuse(self.server.status, "")
        elif parts[:2] == ["api", "models"]:
            blobs = "blobs" in parse_qs(url.query) and not self.server.bare
            self._list("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main", blobs)
        elif parts[0] == "cdn":
            self.server.keys.append(self.headers["Authorization"])
            self._file("/".join(parts[1:3]), "/".join(parts[5:]))
        elif parts[2] == "resolve" and self.server.cdn:
            self._head(302, 0, Location=f"http://localhost:{self.server.server_port}/cdn{url.path}")
        elif parts[2] == "resolve":
            self._file("/".join(parts[:2]), "/".join(parts[4:]))
        else:
            self._refuse(404, "")

    def _list(self, repo: str, revision: str, blobs: bool) -> None:
        self.server.listings += 1
        if repo not in self.server.repos:
            self._refuse(404, "RepoNotFound")
        elif revision not in ("main", self.server.commit):
            self._refuse(404, "RevisionNotFound")
        else:
            files = self.server.repos[repo]
            siblings = [_sibling(name, files[name], blobs) for name in files]
            body = json.dumps(
                {"id": repo, "sha": self.server.commit, "siblings": siblings}
            ).encode()
            self._head(200, len(body))
            self.wfile.write(body)

    def _file(self, repo: str, name: str) -> None:
        if repo in self.server.gated and "letmein" not in self.headers.get("Authorization", ""):
            self._refuse(403, "GatedRepo")
            return
        content = self.server.repos[repo][name]
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        status = 206 if "Range" in self.headers else 200
        etag = f'"{_etag(name, content)}"'
        self._head(status, len(content) - start, ETag=etag, X_Repo_Commit=self.server.commit)
        if self.command == "GET":
            self.server.ranges.append((name, start))
            self._send(content[start:] if not self.server.damaged else bytes(len(content) - start))

    def _send(self, content: bytes) -> None:
        how, after, times = self.server.cut
        if not times or len(content) <= after:
            self.server.served += len(content)
            self.wfile.write(content)
            return
        self.server.cut = (how, after, times - 1)
        self.server.served += after
        self.wfile.write(content[:after])
        if how == "rst":
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.shutdown(socket.SHUT_WR) if how == "fin" else self.connection.close()
        self.close_connection = True

    def _refuse(self, status: int, code: str) -> None:
        self._head(status, 0, X_Error_Code=code)

    def _head(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def _etag(name: str, content: bytes) -> str:
    if name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sibling(name: str, content: bytes, blobs: bool) -> dict[str, object]:
    if not blobs:
        return {"rfilename": name}
    entry: dict[str, object] = {"rfilename": name, "size": len(content)}
    entry["blobId"] = hashlib.sha1(b"pointer" + content).hexdigest()
    if name.endswith(LARGE):
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
    else:
        entry["blobId"] = _etag(name, content)
    return entry
