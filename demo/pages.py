"""A web server on loopback, whose pages are this repository's documents with the nonce in them."""

import hashlib
import html
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

FOLDERS = (".", "docs")


class Site:
    """Pages by path; without the nonce, a page's digest cannot be known in advance."""

    def __init__(self, root: Path, nonce: bytes) -> None:
        documents = [file for folder in FOLDERS for file in sorted((root / folder).glob("*.md"))]
        documents += sorted((root / "workers").rglob("[a-z]*.py"))
        self.documents = {f"/{file.relative_to(root)}": _page(file, nonce) for file in documents}
        self.pages = self.documents | {"/": _front(nonce, list(self.documents))}
        self.address = ""

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each document's page, by URL."""
        return {f"{self.address}{path}": hashlib.sha256(page).hexdigest() for path, page in self.documents.items()}

    @contextmanager
    def served(self) -> Iterator[None]:
        """Serve the pages at `address` until the block ends."""
        with ThreadingHTTPServer(("127.0.0.1", 0), self._handler()) as server:
            self.address = f"http://127.0.0.1:{server.server_port}"
            threading.Thread(target=server.serve_forever, args=(0.1,), name="pages", daemon=True).start()
            try:
                yield
            finally:
                server.shutdown()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        pages = self.pages

        class Handler(BaseHTTPRequestHandler):
            timeout = 10  # seconds a client may keep a thread waiting

            def do_GET(self) -> None:
                page = pages.get(urlsplit(self.path).path)
                body = b"There is no such page." if page is None else page
                self.send_response(404 if page is None else 200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Log nothing: the terminal is the demo's."""

        return Handler


def _front(nonce: bytes, paths: list[str]) -> bytes:
    """Return a page for the browser, titled with the nonce's digest."""
    links = "".join(f'<li><a href="{html.escape(path)}">{html.escape(path[1:])}</a></li>' for path in paths)
    style = "body{font:20px/1.5 sans-serif;margin:48px;columns:2}h1,p{column-span:all}"
    return (
        f"<!doctype html><title>{hashlib.sha256(nonce).hexdigest()}</title><style>{style}</style>"
        f"<h1>HOWL's demo</h1><p>Seen by a worker's browser. This time's nonce: {nonce.decode()[:16]}…</p>"
        f"<ul>{links}</ul>"
    ).encode()


def _page(file: Path, nonce: bytes) -> bytes:
    text = html.escape(file.read_text("utf-8"))
    return f"<!doctype html><title>{file.name}</title><p>{nonce.decode()}</p><pre>{text}</pre>\n".encode()
