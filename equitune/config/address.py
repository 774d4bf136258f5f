"""Which addresses a program may be sent to by a study, a command or the environment: those of a few kinds of store."""

import re

from equitune import catalog
from equitune.config.strict import rule
from equitune.errors import UserError

STORES = ("s3", "gs", "gcs", "abfs")
FOLDERS = ("file", "local")
IN_PROCESS = "memory"  # fsspec's, gone with the process: no machine is asked
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_SHORT = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]+):(?=[:/]|$|.*::)", re.DOTALL
)  # s3:/bucket; of a drive C: one letter stands there
_SECRET = re.compile(r"[?#]|::")  # settings, and one address chained to another


def store_address(text: str, where: str) -> tuple[str, str] | None:
    """Return the scheme, in small letters, and the rest of an address; None of a path.

    Args:
        text: an address or a path.
        where: what holds it, for the sentence. The text itself may hold a secret, and is not repeated.

    Raises:
        UserError: it is an address, but of no store or folder, or holds more than the place.
    """
    found = _ADDRESS.fullmatch(text)
    if not found:
        short = _SHORT.match(text)
        if "://" in text or (short and short[1].lower() in (*STORES, *FOLDERS, "http", "https", "ftp")):
            raise UserError(f"{where}: an address is s3://BUCKET/FOLDER, with two slashes after the first colon")
        return None
    scheme, rest = found[1].lower(), found[2]
    if scheme not in (*STORES, *FOLDERS, IN_PROCESS):
        raise UserError(f"{where}: {catalog.unknown('kind of address', scheme, (*STORES, 'file'))}")
    if "@" in rest.partition("/")[0] or "::" in rest or (scheme not in FOLDERS and _SECRET.search(rest)):
        raise UserError(
            f"{where}: an address is {scheme}://BUCKET/FOLDER alone, without keys or settings, which the environment "
            "holds (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL): leave them out"
        )
    return scheme, rest


def data_address(place: str) -> None:
    """Refuse an address that a study's file may not send a driver to. Raises the rule that it breaks."""
    try:
        store_address(place, "where data lie")
    except UserError as error:
        raise rule(str(error)) from None
