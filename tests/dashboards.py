"""A stand-in for the dashboard of a Ray cluster: Jobs API over HTTP, with a token, that fails as it is told to."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import ray

TOKEN = "feedbeef" * 8


class Dashboard:
    """What it knows and how it answers; tests change it while it serves."""

    def __init__(self) -> None:
        self.token: str | None = TOKEN
        self.version = ray.__version__
        self.resources = {"CPU": 4.0, "driver": 2.0, "node:10.0.0.1": 1.0, "memory": 1e9}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, str] = {}
        self.packages: list[bytes] = []
        self.asked: list[str] = []  # every request: its method, path and body
        self.drop: Callable[[str], bool] = lambda request: False  # which requests end in a broken connection
        self.fail: Callable[[str], bool] = lambda request: False  # which in status 500
        self.stops = True  # whether a job that is asked to stop does
        self.on_submit: Callable[[dict[str, Any]], None] = lambda job: None
        self.url = ""

    def add(self, job_id: str, study: str | None = None, status: str = "RUNNING", **fields: Any) -> dict[str, Any]:
        metadata = {"equitune.study": study, "equitune.by": "ada on laptop"} if study else {}
        job = {
            "type": "SUBMISSION",
            "submission_id": job_id,
            "status": status,
            "entrypoint": "",
            "metadata": metadata,
            "start_time": 1000 * len(self.jobs),
            "driver_exit_code": None,
        }
        self.jobs[job_id] = job | fields
        self.logs.setdefault(job_id, "")
        return self.jobs[job_id]

    def end(self, job_id: str, exit_code: int | None, message: str = "") -> None:
        status = "SUCCEEDED" if exit_code == 0 else "FAILED"
        self.jobs[job_id] |= {"status": status, "driver_exit_code": exit_code, "message": message}

    def sent(self) -> list[dict[str, Any]]:
        """What was submitted."""
        return [json.loads(asked.partition("\n")[2]) for asked in self.asked if asked.startswith("POST /api/jobs/\n")]

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """The status and the JSON, or text, that a request gets."""
        if path == "/api/version":
            return 200, {"version": "4", "ray_version": self.version, "ray_commit": "", "session_name": "s"}
        if path.startswith("/api/v0/nodes"):
            node = {"state": "ALIVE", "resources_total": self.resources}
            return 200, {"result": True, "data": {"result": {"result": [node]}}}
        if path.startswith("/api/packages/"):
            if method == "PUT":
                self.packages.append(body)
            return (200, "") if method == "PUT" or self.packages else (404, "no such package")
        if path == "/api/jobs/":
            if method == "GET":
                driver = {"type": "DRIVER", "job_id": "02000000", "status": "RUNNING", "entrypoint": ""}
                return 200, [*self.jobs.values(), driver]
            request = json.loads(body)
            if request["submission_id"] in self.jobs:
                return 400, f"ValueError: Job with submission_id {request['submission_id']} already exists."
            job = self.add(request["submission_id"], status="PENDING", entrypoint=request["entrypoint"])
            job["metadata"] = request["metadata"]
            self.on_submit(job)
            return 200, {"job_id": job["submission_id"], "submission_id": job["submission_id"]}
        name, _, what = path.removeprefix("/api/jobs/").partition("/")
        if name not in self.jobs:
            return 404, f"Job {name} does not exist"
        if what == "logs":
            return 200, {"logs": self.logs[name]}
        if what == "stop":
            if self.stops:
                self.logs[name] += "stopping\nsmall: interrupted, 1 of 4 trials (1 COMPLETE)\n"
                self.jobs[name]["status"] = "STOPPED"
            return 200, {"stopped": self.stops}
        if method == "DELETE":
            del self.jobs[name]
            return 200, {"deleted": True}
        return 200, self.jobs[name]


@contextmanager
def serving() -> Iterator[Dashboard]:
    """A dashboard on a free port of this machine while the block runs."""
    dashboard = Dashboard()

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = f"{self.command} {self.path}\n{body.decode(errors='replace')}"
            dashboard.asked.append(asked)
            if dashboard.drop(asked):
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            given = self.headers.get("Authorization")
            if dashboard.token and given != f"Bearer {dashboard.token}":
                status, data = (403, "Forbidden: Invalid") if given else (401, "Unauthorized: Missing")
            elif dashboard.fail(asked):
                status, data = 500, "Traceback\nCannot connect to host 10.0.0.9:52365"
            else:
                status, data = dashboard.answer(self.command, self.path, body)
            text = (data if isinstance(data, str) else json.dumps(data)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = do_DELETE = handle_any

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    dashboard.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield dashboard
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def proxy(target: str, cuts: Callable[[int], bool]) -> Iterator[tuple[str, list[int]]]:
    """A way to a server that breaks: of connection n, where `cuts(n)`, after the first bytes of the answer.

    Gives its address, and the numbers of the connections that it broke.
    """
    host, port = target.removeprefix("http://").split(":")
    listener = socket.create_server(("127.0.0.1", 0))
    broken: list[int] = []

    def pump(source: socket.socket, sink: socket.socket, most: int | None) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data[:most])
                if most is not None:
                    break
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        number = 0
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            number += 1
            server = socket.create_connection((host, int(port)))
            if cuts(number):
                broken.append(number)
            threading.Thread(target=pump, args=(client, server, None), daemon=True).start()
            threading.Thread(target=pump, args=(server, client, 5 if cuts(number) else None), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", broken
    finally:
        listener.close()
