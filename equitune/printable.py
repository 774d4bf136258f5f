"""Text that others wrote, made fit for a terminal: what would act there is shown as text."""

import re

# Controls (C0 and C1, but newline and tab), what turns the direction of text, line ends that only some programs see,
# and halves of characters, which no stream takes.
_ACTING = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n)"
)


def printable(text: str) -> str:
    r"""Return a text without anything that acts on a terminal: an escape character becomes the four letters `\x1b`.

    Letters of all scripts, newlines and tabs stay as they are. Applied twice it changes nothing more.
    """
    return _ACTING.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
