"""A rank that reduces arrays of a device that is a stand-in, and stands still in the middle of it until it is killed.

    python -m tests.system.device_rank URL STEP

It says `there` when it has come to the step; before that it has reduced once, but where it never comes so far.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Final

import numpy as np

import clients
from broker.devices import windows
from clients.collectives import device_handover, device_operations, device_windows
from tests import device_stand_in

GROUP: Final = "ranks"
NUMBERS: Final = 5000
STEPS: Final[dict[str, tuple[object, str]]] = {
    "giving its memory": (device_handover.Handover, "give"),
    "mapping the others'": (device_windows, "_mapped"),
    "laying its array there": (device_operations, "put"),
    "reducing its share": (windows.DeviceWindow, "reduce"),
    "writing the result": (windows.DeviceWindow, "fill"),
}
AT_FIRST: Final = ("giving its memory", "mapping the others'")
"""What is done in the first operation only."""


def stand_still(*_: object) -> None:
    """Until the process is killed."""
    print("there", flush=True)
    while True:
        signal.pause()


def array(rank: int) -> object:
    """What a rank contributes."""
    return device_stand_in.cupy().array(np.full(NUMBERS, rank + 1.0, "float32"))


def stand_still_at(step: str) -> None:
    """From here on."""
    owner, name = STEPS[step]
    function: Callable[..., None] = stand_still
    setattr(owner, name, function)


if __name__ == "__main__":
    device_stand_in.install()
    with clients.connect(sys.argv[1]) as client:
        group = client.group(GROUP, world_size=2, rank=1)
        if sys.argv[2] in AT_FIRST:
            stand_still_at(sys.argv[2])
        group.all_reduce(array(1))
        stand_still_at(sys.argv[2])
        group.all_reduce(array(1))
