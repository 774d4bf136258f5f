"""Redis as deploy/ starts it: with its file, its password out of sight, and its probe. Slow."""

import socket
from pathlib import Path

import pytest
from manifests import rendered
from prerequisites import require
from services import LOOPBACK, Place, free_port, wait_until

pytestmark = pytest.mark.slow


def test_redis_keeps_what_it_was_told_and_answers_nobody_without_the_password(tmp_path: Path) -> None:
    require("redis")
    place = Place(tmp_path, rendered("dev"))
    pod, port = place.template("StatefulSet", "redis"), free_port()
    (container,) = pod["containers"]
    place.stands_for |= {"bind * -::*": f"bind {LOOPBACK}\nport {port}", "redis-cli": f"redis-cli -p {port}"}
    probe = {**container, "command": container["readinessProbe"]["exec"]["command"], "args": []}
    try:
        for expected in (b"$-1", b"$5\r\nworld"):
            process = place.start(pod, container, "redis")
            wait_until(lambda: place.run(pod, probe).returncode == 0, 20, lambda: place.said("redis"))
            with socket.create_connection((LOOPBACK, port), 5) as stranger:
                assert asked(stranger, "GET hello").startswith(b"-NOAUTH")
                assert asked(stranger, "AUTH wrong").startswith(b"-WRONGPASS")
                assert asked(stranger, f"AUTH {place.secrets['redis', 'password']}") == b"+OK\r\n"
                assert asked(stranger, "GET hello").startswith(expected)
                assert asked(stranger, "SET hello world") == b"+OK\r\n"
                assert asked(stranger, "CONFIG GET maxmemory-policy").endswith(b"noeviction\r\n")
            process.terminate()
            assert process.wait(20) == 0, place.said("redis")
    finally:
        place.end()
    assert place.secrets["redis", "password"] not in " ".join(place.command(pod, container)) + place.said("redis")


def asked(connection: socket.socket, line: str) -> bytes:
    connection.sendall(line.encode() + b"\r\n")
    return connection.recv(4096)
