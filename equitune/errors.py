"""The outcomes that are nobody's bug: a user's mistake, a network that cannot exist, a number that cannot be had."""

import re

from equitune.printable import printable

# That of an address: USER:PASSWORD@ before the host, or password=... behind it.
PASSWORD = re.compile(r"(?<=://)(?P<user>[^/\s:@'\"]*:)[^/\s@'\"]+@|(?<=[?&]password=)[^&\s'\"]+")


def without_passwords(text: str) -> str:
    """Return a text for people or files: of the addresses within it, the passwords are left out."""
    return PASSWORD.sub(lambda found: f"{found['user']}***@" if found["user"] else "***", text)


class UserError(Exception):
    """A mistake its reader can mend. The shell prints its text alone, without a traceback, and exits with code 2.

    The text says where, the rule, what was given and what to do; it may hold several lines, one mistake each. Passwords
    of addresses are left out of it, and what would act on a terminal is shown as text.
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(printable(without_passwords(text)))


class Infeasible(Exception):
    """A sampled configuration that cannot be trained or measured; its text is the reason.

    Within a study this ends one trial as INFEASIBLE, which teaches the sampler to keep away; it is no failure.
    `cause` is the word for its kind.
    """

    cause = "no_network"


class Unmeasurable(Infeasible):
    """A quantity that has no value here. `status` is the word for it, the text the reason."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class WorkerLost(UserError):
    """This process, its device or another worker of its trial cannot go on. The trial can, elsewhere.

    Whoever runs trials one after another ends the process: what is left of a device in it is not to be trusted.
    """


class TakenOver(OSError):
    """A worker's trial is no longer its own: another driver holds the study. It must not write."""


class GivenUp(TakenOver):
    """The driver has taken the trial from this worker: it gave it to another, or ended it."""


class StoreError(OSError):
    """An object store refuses, or does not answer. Its text says what to do, and holds no secret."""

    def __str__(self) -> str:
        return printable(f"{self.filename}: {self.strerror}")
