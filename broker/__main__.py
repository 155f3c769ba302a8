"""`python -m broker` is `tensorbus`."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """The command `tensorbus`. To import what it is made of takes a while, so what cannot wait comes first."""
    if sys.argv[1:2] == ["serve"]:
        # A wish to read the files again, which would end the daemon until there is somebody who hears it, waits.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if raises:
        # Nothing has begun yet that would have to be ended in order, or told of in a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from broker.cli import streams
    from broker.cli.main import main as command

    if raises:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        command(prog_name="tensorbus")
    except OSError as error:
        # Of what is printed before a command begins, such as its help.
        streams.settle_output()
        sys.exit(f"tensorbus: {streams.words_of(error)}")


if __name__ == "__main__":
    main()
