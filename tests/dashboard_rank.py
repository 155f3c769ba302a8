"""A rank in a process of its own, for the dashboard's tests: reduces and publishes until it is ended.

python -m tests.dashboard_rank URL RANK WORLD_SIZE SCHEDULE
"""

from __future__ import annotations

import sys
import time

import numpy as np

import clients

STEP_S = 0.01


def main(url: str, rank: int, world_size: int, schedule: str) -> None:
    with clients.connect(url, name=f"trainer-{rank}") as bus:
        group = bus.group("dp", world_size=world_size, rank=rank, timeout_s=30.0, schedule=schedule)
        print(f"joined {group.rank}", flush=True)
        generator = np.random.default_rng(rank)
        for step in range(1_000_000):
            gradient = generator.standard_normal(1000).astype(np.float32)
            bus.publish(f"gradients/trainer-{rank}", gradient)
            group.all_reduce(gradient, op="mean", timeout_s=60.0)
            bus.publish(f"metrics/trainer-{rank}/loss", {"step": step, "loss": 1 / (step + 1)})
            time.sleep(STEP_S)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
