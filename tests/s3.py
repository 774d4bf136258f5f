"""An S3 server on loopback for the tests, and a proxy before it that refuses, or is away, when it is told to."""

import os
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BUCKET = "studies"
SECRET = "n0thing-2-s33"
DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Proxy:
    """Passes requests on to a server; `is_away` closes connections without a word, `forbids` answers 403."""

    def __init__(self, port: int) -> None:
        proxy = self
        self.is_away = False
        self.forbids: Callable[[str, str], bool] = lambda method, path: False
        self.requests = 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                with suppress(ConnectionError):
                    super().handle_one_request()

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.requests += 1
                if proxy.is_away:
                    self.close_connection = True
                    return
                if proxy.forbids(self.command, self.path):
                    self.reply(403, {"Content-Type": "application/xml"}, DENIED)
                    return
                connection = HTTPConnection("127.0.0.1", port, timeout=60)
                connection.request(self.command, self.path, body or None, dict(self.headers))
                answer = connection.getresponse()
                self.reply(answer.status, dict(answer.getheaders()), answer.read())
                connection.close()

            def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                        self.send_header(name, value)
                length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

            def log_message(self, *args: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def end(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def server() -> Iterator[tuple[Proxy, dict[str, str]]]:
    """A server with an empty bucket, behind a proxy; and the environment in which it is found."""
    from moto.server import ThreadedMotoServer

    started = ThreadedMotoServer("127.0.0.1", free_port(), verbose=False)
    started.start()
    host, port = started.get_host_and_port()
    urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"").close()  # servers of a process share all
    proxy = Proxy(port)
    environment = {
        "AWS_ENDPOINT_URL": proxy.url,
        "AWS_ACCESS_KEY_ID": "nobody-at-all",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        import boto3

        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield proxy, environment
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        proxy.end()
        started.stop()
