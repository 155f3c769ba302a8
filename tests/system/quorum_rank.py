"""A rank in a process of its own that reduces with a quorum of two; rank 0 makes a step for each message it gets."""

from __future__ import annotations

import hashlib
import sys

import numpy as np

import clients

STOP = 0


def main(url: str, rank: int, world_size: int, elements: int) -> None:
    with clients.connect(url, name=f"rank-{rank}") as bus:
        wishes = bus.subscribe("control/steps") if rank == 0 else None
        group = bus.group("ranks", world_size=world_size, rank=rank, timeout_s=30.0)
        print("joined", flush=True)
        total, step = np.zeros(elements), 0
        while True:
            array = np.full(elements, rank + 1.0)
            array[STOP] = wishes is not None and wishes.next(30.0).value == "stop"
            try:
                part = group.all_reduce(array, quorum=2, deadline=0.2, timeout_s=30.0)
            except clients.GenerationChangedError as change:
                print(f"changed lost={change.lost_ranks}", flush=True)
                step = group.sync_state({"total": total}, step, timeout_s=30.0).step
                continue
            total += array
            step += 1
            print(f"{step} ranks={list(part.ranks)} carried={list(part.carried_ranks)}", flush=True)
            if array[STOP]:
                print(f"stopped {hashlib.sha256(total.tobytes()).hexdigest()}", flush=True)
                # So that nobody leaves while another one is still to be told of the last step.
                group.barrier(timeout_s=30.0)
                return


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
