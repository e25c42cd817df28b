"""A model hub with one model, as far as huggingface_hub asks for it."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import orjson

COMMIT = "0" * 40


def _entry(file: Path) -> dict[str, object]:
    data = file.read_bytes()
    return {"type": "file", "path": file.name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


def _handler(model: Path) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            path = model / self.path.partition("?")[0].rpartition("/")[2]
            if "/tree/" in self.path:
                body = orjson.dumps([_entry(file) for file in sorted(model.iterdir())])
            elif self.path.startswith("/api/models/"):
                siblings = [{"rfilename": file.name} for file in sorted(model.iterdir())]
                body = orjson.dumps({"id": "model", "sha": COMMIT, "siblings": siblings})
            elif path.is_file():
                body = path.read_bytes()
            else:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    return Handler


@contextmanager
def running_hub(model: Path) -> Iterator[str]:
    """Its URL, for the length of the block; whatever model is asked for, it is the one in this directory."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(model)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
