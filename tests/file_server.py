"""A loopback server that misbehaves on request: it cuts, ignores ranges, lies about them, changes what it serves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Behaviour:
    """What is served, and how. cuts: after how many bytes of its body each reply breaks off; the replies after them are whole."""

    content: bytes
    tag: str | None = '"one"'
    cuts: list[int] = field(default_factory=list)
    ranges: str = "honest"  # honest | ignored | shifted
    status: int = 200
    lengths: bool = True
    asked: list[str | None] = field(default_factory=list)  # the Range of each request


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[str]:
    """The address of a file that behaves so."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _answer(self, behaviour)

        def log_message(self, format: str, *args: Any) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/file.bin"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(request: BaseHTTPRequestHandler, how: Behaviour) -> None:
    wanted = request.headers.get("Range")
    how.asked.append(wanted)
    if how.status != 200:
        request.send_error(how.status)
        return
    start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
    unchanged = how.tag is None or request.headers.get("If-Range", how.tag) == how.tag
    if how.ranges == "ignored" or not unchanged:
        start, wanted = 0, None
    if start >= len(how.content):
        request.send_error(416)
        return
    if how.ranges == "shifted" and wanted:
        start = max(0, start - 3)
    body = how.content[start:]
    request.send_response(206 if wanted else 200)
    if wanted:
        request.send_header("Content-Range", f"bytes {start}-{len(how.content) - 1}/{len(how.content)}")
    if how.tag is not None:
        request.send_header("ETag", how.tag)
    if how.lengths:
        request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body[: how.cuts.pop(0)] if how.cuts else body)
