"""In a broker's place, for systems that have none: `python -m bench.peers.nobody ADDRESS` only says the address."""

from __future__ import annotations

import signal
import sys

if __name__ == "__main__":
    print(f"listening on {sys.argv[1]}", flush=True)
    signal.pause()
