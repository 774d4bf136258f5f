"""What is settled before Ray's library is imported: whether a cluster answers, and what the library reads."""

import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from equitune.errors import UserError

CONNECT_S = 5.0


LOOPBACK = ("127.0.0.1", "localhost", "::1")


def require_ray(address: str) -> None:
    """Asks, before anything is begun, whether a cluster is there and lets us in. Ray itself would try for minutes.

    Raises:
        UserError: no such address, nobody answers, or the cluster takes another token.
    """
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and port.isdecimal()):
        raise UserError(f"--address: a Ray cluster's address is host:port or auto, but got {address!r}")
    prepare(address)
    from ray._private.services import canonicalize_bootstrap_address_or_die
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.exceptions import AuthenticationError, RayError

    try:
        where = canonicalize_bootstrap_address_or_die(address) if address == "auto" else address
        _require_open(where)
        with _chatter_aside():
            GcsClient(address=where)
    except AuthenticationError:
        raise UserError(
            f"Ray at {where} refuses the token of this process, or that it has none: give the cluster's as "
            "RAY_AUTH_TOKEN, or a file that holds it as RAY_AUTH_TOKEN_PATH, with RAY_AUTH_MODE=token"
        ) from None
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        raise UserError(f"Ray cannot be reached at {address}: {error}") from None


def _require_open(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise UserError(f"Ray cannot be reached at {address}: {error.strerror or error}") from None


@contextmanager
def _chatter_aside() -> Iterator[None]:
    """Return what Ray's own code writes to the terminal, past Python, is dropped: the error that it
    raises says it too.
    """
    terminal = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def _is_on_loopback_alone(address: str | None) -> bool:
    """Says whether an address of this machine answers as it is, and not as Ray rewrites it: by the host's own name."""
    address = (os.environ.get("RAY_ADDRESS") if address == "auto" else address) or ""
    host, _, port = address.rpartition(":")
    if host.strip("[]") not in LOOPBACK or not port.isdecimal():
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
        try:
            outward.connect(("8.8.8.8", 1))  # sends nothing: only asks for the address that would be used
            own = outward.getsockname()[0]
        except OSError:
            return False  # without a network Ray takes loopback itself
    try:
        _require_open(address)
        _require_open(f"{own}:{port}")
    except UserError as error:
        return own in str(error)
    return False


def prepare(address: str | None) -> None:
    """Set the environment that Ray reads when it is first imported."""
    if "ray" not in sys.modules and _is_on_loopback_alone(address):
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if address is None and "ray" not in sys.modules:
        # A token of this process alone: nobody else gets in, and no home folder has to be writable.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # As on macOS and Windows: all of its ports on loopback. `_node_ip_address` alone does not reach the daemons.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ.update(
        {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AIR_NEW_OUTPUT": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
            "TUNE_DISABLE_SIGINT_HANDLER": "1",
            "TUNE_GLOBAL_CHECKPOINT_S": "3600",
            "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        }
    )
