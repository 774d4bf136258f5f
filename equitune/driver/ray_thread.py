"""Ray in a thread of its own, which the program can leave: Ray may die, hang, or not be waited for any more.

Ray's library ends the whole process, without a word, 14 s after its raylet has died and 60 s after its GCS. Whoever
looks at them sees it at once, and ends in order.
"""

import atexit
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from equitune.search.engine import Engine

LOOK_S = 0.2  # between two looks
START_S = 120.0  # that Ray may take to start, or a cluster to let the driver in
STOP_S = 12.0  # that Ray may take to end; a pod has 30 s in all, of which MLflow takes up to 8
HEARING_S = 3.0  # that a record which is just being made may take
KNOCK_S = 1.0  # between two looks at a cluster's daemons
ANSWER_S = 2.0  # that a port may take to answer
RAYLET_S = 4.0  # without an answer: then a cluster's raylet is lost, and with it all that this driver has there
GCS_MARGIN_S = 15.0  # before Ray's library gives a cluster's GCS up, which may be started again meanwhile
GIVES_UP = "RAY_gcs_rpc_server_reconnect_timeout_s"  # sets when Ray's library gives a GCS up
DAEMONS = {"gcs_server": "GCS", "raylet": "raylet"}  # their processes, and their names


@dataclass
class Port:
    """One of a cluster's daemons that this driver depends on."""

    name: str
    host: str
    port: int
    patience_s: float
    answered: float = field(default_factory=time.monotonic)

    def knock(self) -> bool:
        """Say whether it answers."""
        try:
            socket.create_connection((self.host, self.port), ANSWER_S).close()
        except OSError:
            return False
        self.answered = time.monotonic()
        return True

    def is_lost(self) -> bool:
        """Say whether it has been silent for too long."""
        return time.monotonic() - self.answered > self.patience_s


class RayWatch:
    """Knows how far Ray is, and whether the daemons that this driver depends on live."""

    def __init__(self, address: str | None) -> None:
        """`address`: of a cluster; None where the daemons are children of this process."""
        self._address = address
        self._began = time.monotonic()
        self._children: dict[str, Any] = {}
        self._started: list[Any] = []  # processes; agents of a raylet that is lost are nobody's children
        self._ports: list[Port] = []
        self.is_connected = False
        self.is_running = False  # trials may run
        self.is_ending = False  # its daemons may end
        self.is_left = False  # nobody waits for it any more

    def connected(self) -> None:
        """Hear that this process is part of a cluster now."""
        self.is_connected = True
        if self._address is None:
            self._started = started_processes()
        else:
            self._ports = [port for port in _ports() if port.knock()]  # what is not for this driver tells nothing
            threading.Thread(target=self._knock, daemon=True).start()  # to look a name up may last

    def leave(self) -> None:
        """End what this process has started of Ray, whose library then does nothing more."""
        self.is_left = True
        leave_ray()
        end_processes(self._started)

    @contextmanager
    def ending_processes(self) -> Iterator[None]:
        """Shut Ray down within the block; what is left then of its processes, if they are this one's, is killed."""
        started = started_processes() if self._address is None else []
        yield
        end_processes(self._started + started)

    def lost(self) -> str | None:
        """Return what has happened to Ray, as a sentence; None while all is well."""
        if self.is_ending:
            return None
        again = "run the same command again; nothing is lost"
        if not self.is_connected and time.monotonic() - self._began > START_S:
            where = f"at {self._address} does" if self._address else "on this machine did"
            return f"Ray {where} not answer within {START_S:.0f} s: {again}"
        if self._address is None:
            name = self._lost_child()
            return f"Ray ended on this machine (its {name} was lost): {again}" if name else None
        name = next((port.name for port in self._ports if port.is_lost()), None)
        return f"Ray at {self._address} does not answer any more (its {name} was lost): {again}" if name else None

    def _knock(self) -> None:
        while not self.is_ending:
            for port in self._ports:
                port.knock()
            time.sleep(KNOCK_S)

    def _lost_child(self) -> str | None:
        if len(self._children) < len(DAEMONS):
            self._children = _daemons() | self._children
        return next((name for name, process in self._children.items() if _has_ended(process)), None)


def run_with_ray(work: Callable[[], None], engine: "Engine", watch: RayWatch) -> None:
    """Run the part of a search that needs Ray. Leave it where Ray is lost, or takes too long to end.

    `engine.halted` says why, unless a signal does.

    Raises:
        Exception: what `work` has raised.
    """
    asked: list[float] = []  # when Ray was to end

    def is_to_be_left() -> bool:
        if sentence := watch.lost():
            engine.halted = engine.halted or sentence
            return True
        if not asked and (engine.stopping or engine.halted or watch.is_ending):
            asked.append(time.monotonic())
        is_stuck = bool(asked) and time.monotonic() - asked[0] > STOP_S
        return is_stuck or (engine.draining and not watch.is_running)

    if run_leavable(work, is_to_be_left):
        engine.hearing.acquire(timeout=HEARING_S)  # never given back: the next driver may begin when this one ends
        watch.leave()


def run_leavable(work: Callable[[], None], why_leave: Callable[[], bool]) -> bool:
    """Run a call in a thread, and look every LOOK_S whether to leave it there. Signals are obeyed at once.

    Returns:
        Whether it was left. It goes on in its thread until the process ends, and its outcome is not known.

    Raises:
        Exception: what the call has raised.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True, name="ray")
    thread.start()
    while thread.is_alive():
        thread.join(LOOK_S)
        _keep_handler()
        if thread.is_alive() and why_leave():
            return True
    if raised:
        raise raised[0]
    return False


def _keep_handler() -> None:
    """Set the handler of SIGTERM again: Ray's library, as it starts, puts one there that ends the process."""
    handler = signal.getsignal(signal.SIGTERM)
    with suppress(ValueError):  # of another thread than the main one
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)


def leave_ray() -> None:
    """End the daemons that this process has started, with their workers. Ray's library does nothing more at the end."""
    end_processes(started_processes())
    logger = logging.getLogger("ray")
    logger.handlers, logger.propagate = [logging.NullHandler()], False
    atexit._clear()  # what Ray and those beside it have registered would wait for it


def started_processes() -> list[Any]:
    """Return the daemons that this process has started, and all that they have started."""
    return [process for daemon in _daemons().values() for process in _family(daemon)]


def end_processes(processes: list[Any]) -> None:
    """Kill those that still run: an agent of a raylet that is gone would try to reach its GCS for a minute."""
    import psutil

    for process in processes:
        with suppress(psutil.Error):
            process.kill()


def _daemons() -> dict[str, Any]:
    """Return Ray's daemons that are children of this process, by their names."""
    try:
        import psutil  # Ray brings it along, and shows where it lies as soon as it is imported
    except ImportError:
        return {}
    found = {}
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if child.name() in DAEMONS:
                found[DAEMONS[child.name()]] = child
    return found


def _family(process: Any) -> list[Any]:
    """Return a process and all that it has started."""
    import psutil

    try:
        return [*process.children(recursive=True), process]
    except psutil.Error:
        return [process]


def _has_ended(process: Any) -> bool:
    import psutil

    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _ports() -> list[Port]:
    """Return the ports of the GCS and of the raylet that this driver has joined."""
    from ray._private.services import parse_address
    from ray._private.worker import _global_node as node

    host, port = parse_address(node.gcs_address)
    gives_up_s = float(os.environ.get(GIVES_UP, "60"))
    return [
        Port("raylet", node.node_ip_address, node.node_manager_port, RAYLET_S),
        Port("GCS", host, int(port), max(RAYLET_S, gives_up_s - GCS_MARGIN_S)),
    ]
