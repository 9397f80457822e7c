"""A package index of our own: one page of links, which pip reads as ``--find-links``."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from zipfile import ZipFile


class Index(ThreadingHTTPServer):
    """
    Serves `wheels` at `url`.

    Attributes:
        go: While clear, a wheel stops half way.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.wheels: dict[str, bytes] = {}
        self.downloads = 0
        self.go = threading.Event()
        self.go.set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def add(self, name: str, version: str, files: dict[str, bytes]) -> None:
        info = f"{name}-{version}.dist-info"
        about = {
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": "",
        }
        body = BytesIO()
        with ZipFile(body, "w") as archive:
            for path, content in {**about, **files}.items():
                archive.writestr(path, content)
        self.wheels[f"{name}-{version}-py3-none-any.whl"] = body.getvalue()

    def stop(self) -> None:
        self.go.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request, client_address) -> None:
        """A client that leaves is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        body = self.server.wheels.get(self.path[1:])
        if body is None:
            links = [
                f'<a href="{name}#sha256={hashlib.sha256(wheel).hexdigest()}">{name}</a>'
                for name, wheel in self.server.wheels.items()
            ]
            self._answer("text/html", "<!DOCTYPE html>{}".format("".join(links)).encode())
        else:
            self.server.downloads += 1
            self._answer("application/octet-stream", body)

    def _answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        if kind != "text/html":
            self.server.go.wait()
        self.wfile.write(body[len(body) // 2 :])

    def log_message(self, *args: object) -> None:
        pass
