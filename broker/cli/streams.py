"""The three streams that a command is started with: whoever starts it may have closed them, or filled what is behind.

A socket takes the lowest free number. Where 0, 1 or 2 is free, what is printed would go into the connection to the
broker, or what the broker says would be taken for the standard input. So these numbers are taken first, by ends at
which reading and printing fail as they do at a closed descriptor.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Final

_ENDS: Final = (os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)
"""Nothing can be read from the first and printed to the second; what goes to the third goes nowhere."""


def take() -> None:
    """Makes the standard streams safe to use, whatever they are; to be called before anything is opened."""
    for number, flags in enumerate(_ENDS):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, flags)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    # They live as long as the process.
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # What the terminal's encoding does not have is shown by its number. A name that is no text is shown as
        # it is in UTF-8, if Python has chosen that.
        if isinstance(stream, io.TextIOWrapper) and (stream.errors == "strict" or stream.encoding.lower() != "utf-8"):
            stream.reconfigure(errors="backslashreplace")


def discard_output() -> None:
    """Lets the interpreter flush, at its end, what nobody reads."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def settle_output() -> None:
    """Gives up what the output cannot take, so that it is not tried once more when the interpreter ends."""
    try:
        sys.stdout.flush()
    except OSError:
        discard_output()


def words_of(error: OSError) -> str:
    """What the system says, and of which file."""
    what = "the input or the output" if error.filename is None else repr(os.fsdecode(error.filename))
    return f"{what} cannot be used: {error.strerror or error}"
