"""One rank on a board, for the tests: reads wishes, one JSON object a line, and tells what has become of them."""

from __future__ import annotations

import json
import sys

import numpy as np

from broker.collectives import shm
from broker.collectives.claims import CollectiveKind, ReduceOp
from broker.transport.shared_memory import SharedMemory


def carry_out(engine: shm.Engine, positions: int, position: int, wishes: dict[str, object]) -> dict[str, object]:
    """An all-reduce of `elements` float32 that hold the position + 1, `count` times; the first failure ends it."""
    elements = int(str(wishes["elements"]))
    plan = shm.Plan(
        CollectiveKind.ALL_REDUCE, str(wishes.get("claim", elements)).encode(), positions,
        op=ReduceOp.SUM, dtype="float32", array_bytes=4 * elements,
    )  # fmt: skip
    expected = positions * (positions + 1) // 2
    status, done = 0, 0
    for _ in range(int(str(wishes.get("count", 1)))):
        array = np.full(elements, position + 1, np.float32)
        task = shm.Task(plan, array, array, int(float(str(wishes["timeout_s"])) * 1e9))
        try:
            status = engine.run(task)
        except KeyboardInterrupt:
            return {"raised": "KeyboardInterrupt", "intact": bool((array == position + 1).all())}
        intact = bool((array == (expected if status == shm.Outcome.COMMITTED else position + 1)).all())
        if status != shm.Outcome.COMMITTED or not intact:
            break
        done += 1
    claims = {each: claim.decode() for each, claim in task.claims().items()}
    return {"outcome": shm.Outcome(status).name, "intact": intact, "positions": task.positions, "claims": claims,
            "done": done}  # fmt: skip


def main() -> None:
    descriptor, size_bytes, positions, position = (int(argument) for argument in sys.argv[1:])
    memory = SharedMemory.adopt(descriptor, size_bytes, common=True)
    engine = shm.Engine(memory.descriptor, memory.size_bytes, positions, position)
    for line in sys.stdin:
        print(json.dumps(carry_out(engine, positions, position, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
