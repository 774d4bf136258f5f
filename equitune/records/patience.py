"""An object store that is away is waited for; what it refuses is said in a sentence that holds no secret."""

import errno
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from equitune.errors import StoreError

FIRST_PATIENCE_S = 2.0  # of a store that has not answered yet: its address may be wrong
PATIENCE_S = 300.0  # that a store may be away once it has answered
FIRST_PAUSE_S, MOST_PAUSE_S = 0.5, 10.0  # between two tries; each pause is twice the last
ASKED = "s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject"
SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")
# What no waiting mends, by the name of its exception: these libraries are imported where they are used alone.
NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "CredentialRetrievalError")
HOPELESS = ("ParamValidationError", "InvalidEndpointConfigurationError", "InvalidRegionError", "UnknownServiceError")
HOPELESS_ERRNOS = (errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENAMETOOLONG, getattr(errno, "EREMCHG", errno.EINVAL))
LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "fsspec", "s3fs", "gcsfs", "adlfs", "google", "azure")

Answer = TypeVar("Answer")
hurry = threading.Event()  # set by who wants an end: nothing is waited for any more

_answered: set[str] = set()  # the stores that have answered, and were not given up since
log = logging.getLogger(__name__)


def trust(store: str) -> None:
    """Says that a store is known to answer, so that it is waited for from the first call on."""
    _answered.add(store)


def patiently(store: str, doing: str, url: str, call: Callable[[], Answer]) -> Answer:
    """Return what a call of a store gives, made again and again while the store is away.

    Args:
        store: its name, such as s3://bucket.
        doing: what the call does, as in "reading".
        url: what it does it to.
        call: is made again, so it must do no harm twice.

    Raises:
        FileNotFoundError: there is no such file.
        StoreError: the store refuses the call, or was away for too long.
    """
    begun, pause_s = time.monotonic(), FIRST_PAUSE_S
    while True:
        try:
            answer = call()
        except FileNotFoundError as error:
            if _code(error) == "NoSuchBucket":
                raise StoreError(errno.ENOENT, no_bucket(store), url) from None
            _answered.add(store)
            raise
        except Exception as error:
            final = _final(error, store, doing)
            if final is not None:
                raise StoreError(errno.EACCES, final, url) from error
            if not _is_outage(error):
                raise
            said = f"{store} does not answer ({cleaned(error)})"
            patience_s = PATIENCE_S if store in _answered else FIRST_PATIENCE_S
            if hurry.is_set() or time.monotonic() - begun > patience_s:
                _answered.discard(store)
                raise StoreError(errno.EIO, f"{said}: mend the address (AWS_ENDPOINT_URL) or the store", url) from error
            log.warning("%s while %s %s: trying again in %.1f s", said, doing, url, pause_s)
            hurry.wait(pause_s)
            pause_s = min(2 * pause_s, MOST_PAUSE_S)
        else:
            _answered.add(store)
            return answer


def cleaned(error: BaseException) -> str:
    """Return what an error says, in a line without secrets."""
    text = re.sub(r"//[^/@\s]+@", "//***@", " ".join(str(error).split()) or type(error).__name__)
    for name in SECRETS:
        if len(secret := os.environ.get(name, "")) > 3:
            text = text.replace(secret, "***")
    return text[:200]


def _final(error: Exception, store: str, doing: str) -> str | None:
    """Return what no waiting mends, as a sentence; None of all else."""
    kind = type(error).__name__
    if kind in NO_CREDENTIALS:
        return (
            f"{store} wants credentials, and none were found ({cleaned(error)}): set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if isinstance(error, PermissionError):
        return (
            f"{store} refuses {doing} (403: {cleaned(error)}): give the credentials in use "
            f"{ASKED if store.startswith('s3') else 'the right to list, read, write and delete'} there, or take others"
        )
    if kind in HOPELESS or (isinstance(error, OSError) and error.errno in HOPELESS_ERRNOS):
        return f"{store} refuses {doing} ({cleaned(error)}): mend the address"
    return None


def _is_outage(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in LIBRARIES


def no_bucket(store: str) -> str:
    """Says that there is none."""
    return f"there is no bucket {store}: make it, or mend its name"


def _code(error: BaseException | None) -> str:
    """S3's word for an error."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__ or error.__context__
    return ""
