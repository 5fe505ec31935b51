"""A web site on loopback for tests, friendly and hostile."""

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PAGE = """<!doctype html><html><head><title>A &amp; B
 &eacute;</title><style>p{}</style></head>
<body><!-- <p>hidden --><h1>Hello</h1><script>alert("<p>no</p>")</script><p>wide   &lt;world&gt;</p></body></html>"""
BOMB = gzip.compress(bytes(100_000_000))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.seen.append(self.headers["Host"])
        self.server.asked.append(self.path)
        if self.path in self.server.pages:
            self.answer(self.server.pages[self.path].encode(), ("Content-Type", "text/html; charset=utf-8"))
            return
        place = urlsplit(self.path)
        getattr(self, place.path.strip("/"), self.missing)(parse_qs(place.query))

    def answer(self, body: bytes, *headers: tuple[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in (("Content-Length", str(len(body))), *headers):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def page(self, _: dict) -> None:
        self.answer(PAGE.encode(), ("Content-Type", "text/html; charset=utf-8"))

    def packed(self, _: dict) -> None:
        self.answer(gzip.compress(PAGE.encode()), ("Content-Type", "text/html"), ("Content-Encoding", "gzip"))

    def bomb(self, _: dict) -> None:
        self.answer(BOMB, ("Content-Encoding", "gzip"))

    def liar(self, _: dict) -> None:
        self.answer(b"not packed at all", ("Content-Encoding", "gzip"))

    def unknown(self, _: dict) -> None:
        self.answer(b"...", ("Content-Encoding", "br"))

    def latin(self, _: dict) -> None:
        self.answer("Café".encode("latin-1"), ("Content-Type", "text/plain; charset=iso-8859-1"))

    def broken(self, _: dict) -> None:
        self.answer(b"a\xff\0b", ("Content-Type", "text/plain; charset=no-such-charset"))

    def missing(self, _: dict) -> None:
        self.answer(b"no", status=404)

    def hop(self, query: dict) -> None:
        self.answer(b"", ("Location", query["to"][0]), status=302)

    def loop(self, _: dict) -> None:
        self.answer(b"", ("Location", "/loop"), status=307)

    def file(self, _: dict) -> None:
        self.answer(b"...", ("Content-Disposition", "attachment; filename=x.bin"))

    def hoard(self, _: dict) -> None:
        self.send_response(200)
        self.pour(b"X-Header: " + b"x" * 60_000 + b"\r\n", 0)

    def short(self, _: dict) -> None:
        self.answer(b"half", ("Content-Length", "100"))
        self.close_connection = True

    def endless(self, _: dict) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.pour(bytes(65536), 0)

    def trickle(self, _: dict) -> None:
        self.send_response(200)
        self.end_headers()
        self.pour(b".", 0.05)

    def dawdle(self, _: dict) -> None:
        """Each hop is quick enough; all together are not."""
        self.server.closing.wait(0.2)
        self.answer(b"", ("Location", "/dawdle"), status=302)

    def trickling_headers(self, _: dict) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        self.pour(b"X: y\r\n", 0.05)

    def pour(self, chunk: bytes, pause: float) -> None:
        try:
            while not self.server.closing.wait(pause):
                self.wfile.write(chunk)
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


class Site(ThreadingHTTPServer):
    """A web site on loopback that remembers the hosts and paths it was asked for; pages of its own are in `pages`."""

    def __init__(self, address: str, port: int = 0) -> None:
        super().__init__((address, port), Handler)
        self.seen: list[str] = []
        self.asked: list[str] = []
        self.pages: dict[str, str] = {}
        self.closing = threading.Event()

    def __enter__(self) -> "Site":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def url(self, path: str = "", host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.server_port}{path}"
