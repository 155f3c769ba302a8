"""`python -m broker` is `tensorbus`."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """The command `tensorbus`. To import what it is made of takes a while, so what cannot wait comes first."""
    if sys.argv[1:2] == ["serve"]:
        # A wish to read the files again, which would end the daemon until there is somebody who hears it, waits.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    from broker.cli.main import main as command

    command(prog_name="tensorbus")


if __name__ == "__main__":
    main()
