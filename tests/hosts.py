"""Hosts of a cluster on this machine: each a network namespace (its own address, no way out) with a PID namespace (it dies
whole) and a name of its own. Needs root, iproute2 and util-linux; only what was made here is touched.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

PREFIX = "eqL"
NETWORK = "198.18.77"  # of the addresses that RFC 2544 keeps for tests


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Network:
    """A switch, the hosts on it, and the names by which they know each other.

    What is no host of the cluster (databases, servers, the user's laptop) lives beside the switch, at `outside`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.hosts = folder, dict[str, Host]()
        self.outside = f"{NETWORK}.1"
        self._names: dict[str, str] = {}
        self._spaces: list[str] = []
        self.within = self._space("switch")
        inside = ("-n", f"{PREFIX}-switch")
        ip(*inside, "link", "add", "br0", "type", "bridge")
        ip(*inside, "addr", "add", f"{self.outside}/24", "dev", "br0")
        ip(*inside, "link", "set", "br0", "up")

    def _space(self, name: str) -> list[str]:
        """Makes a network namespace; returns the command that runs another one in it."""
        space = f"{PREFIX}-{name}"
        ip("netns", "add", space)
        self._spaces.append(space)
        ip("-n", space, "link", "set", "lo", "up")
        folder = Path("/etc/netns") / space
        folder.mkdir(parents=True)
        (folder / "hosts").write_text("")
        (folder / "resolv.conf").write_text("")
        self._write_names()
        return ["ip", "netns", "exec", space]

    def host(self, name: str, number: int) -> "Host":
        """A host that is off."""
        within, space = self._space(name), f"{PREFIX}-{name}"
        port = f"{PREFIX}{number}"
        ip("-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", f"{PREFIX}-switch")
        ip("-n", f"{PREFIX}-switch", "link", "set", port, "master", "br0", "up")
        ip("-n", space, "link", "set", "eth0", "up")
        self.hosts[name] = Host(self, name, within, port)
        self.hosts[name].move(number)
        return self.hosts[name]

    def name(self, name: str, address: str) -> None:
        """Every host finds this address by this name from now on."""
        self._names[name] = address
        self._write_names()

    def _write_names(self) -> None:
        text = "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in self._names.items())
        for space in self._spaces:
            (Path("/etc/netns") / space / "hosts").write_text(text)  # in place: running hosts have this very file

    def end(self) -> None:
        for host in self.hosts.values():
            host.kill()
        for space in self._spaces:
            ip("netns", "delete", space)
            shutil.rmtree(Path("/etc/netns") / space)


class Host:
    """A machine that is off, or runs one command and what that starts."""

    def __init__(self, network: Network, name: str, within: Sequence[str], port: str) -> None:
        self.network, self.name, self.address = network, name, ""
        self.folder = network.folder / name  # short: sockets lie below
        self.folder.mkdir()
        self.log = self.folder / "log"
        self._within, self._port = within, port
        self._process: subprocess.Popen[bytes] | None = None

    def move(self, number: int) -> None:
        """Gives it another address."""
        space = ("-n", f"{PREFIX}-{self.name}")
        if self.address:
            ip(*space, "addr", "delete", f"{self.address}/24", "dev", "eth0")
        self.address = f"{NETWORK}.{number}"
        ip(*space, "addr", "add", f"{self.address}/24", "dev", "eth0")

    def connect(self, is_connected: bool) -> None:
        """Plugs its cable in, or out."""
        ip("-n", f"{PREFIX}-switch", "link", "set", self._port, "up" if is_connected else "down")

    def start(self, command: str, environment: Mapping[str, str]) -> None:
        """Switches it on, to run a shell's command as a container does: whatever it starts ends with it."""
        assert self._process is None
        apart = ["unshare", "--pid", "--mount", "--uts", "--fork", "--mount-proc", "--kill-child"]
        named = f"hostname {self.name}; {command}"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._within, *apart, "bash", "-c", "--", named],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,
            )

    @property
    def is_on(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def popen(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Runs another command on it, which ends with the host."""
        enter = ["nsenter", "--target", str(self._first()), "--net", "--pid", "--mount", "--uts"]
        with log.open("ab") as file:
            return subprocess.Popen(
                [*enter, "--wd=/", *command],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, command: Sequence[str], environment: Mapping[str, str], timeout_s: float = 120) -> tuple[int, str]:
        """The exit code of a command that runs on it, and what it says."""
        log = self.folder / "said"
        log.unlink(missing_ok=True)
        process = self.popen(command, environment, log)
        try:
            return process.wait(timeout_s), log.read_text()
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"{' '.join(command)} did not end:\n{log.read_text()}") from None

    def _first(self) -> int:
        """The process that is number 1 on the host."""
        assert self._process
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        for _ in range(200):
            with contextlib.suppress(OSError, IndexError):
                return int(children.read_text().split()[0])
            time.sleep(0.05)
        raise AssertionError(f"{self.name} has not started:\n{self.log.read_text()}")

    def processes(self) -> Iterator[tuple[int, str]]:
        """Those that run on it, as this machine numbers them, with their command lines."""
        said = subprocess.run(["ip", "netns", "pids", f"{PREFIX}-{self.name}"], capture_output=True, text=True)
        for pid in map(int, said.stdout.split()):
            with contextlib.suppress(OSError):
                yield pid, Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()

    def kill(self) -> None:
        """Switches it off without a word."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)  # its child, and with that the host, goes along
            self._process.wait()
            self._process = None
        for _ in range(200):
            if not list(self.processes()):
                return
            time.sleep(0.05)
        raise AssertionError(f"{self.name} does not die: {list(self.processes())}")

    def terminate(self, grace_s: float) -> float:
        """Ends it as the kubelet does: SIGTERM, then SIGKILL for what is left; returns the seconds it took."""
        assert self._process
        began = time.monotonic()
        os.kill(self._first(), signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_s)
        took_s = time.monotonic() - began
        self.kill()
        return took_s


def until(condition: Callable[[], bool], what: str, timeout_s: float = 120) -> float:
    """Waits; returns the seconds it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout_s, f"waited {timeout_s:g} s in vain until {what}"
        time.sleep(0.05)
    return time.monotonic() - began
