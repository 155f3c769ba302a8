"""One rank of an engine, for the tests: reads wishes, one JSON object a line, and tells what has become of them.

engine_rank board DESCRIPTOR BYTES POSITIONS POSITION
engine_rank ring LINKS POSITION        the links as JSON, for each position its descriptors
"""

from __future__ import annotations

import json
import sys

import numpy as np

from broker.collectives import ring, shm
from broker.collectives.claims import CollectiveKind, ReduceOp
from broker.collectives.tasks import Outcome, Plan, Task, Turns
from broker.transport.shared_memory import SharedMemory


def carry_out(engine: Turns, positions: int, position: int, wishes: dict[str, object]) -> dict[str, object]:
    """An all-reduce of `elements` float32 that hold the position + 1, `count` times; the first failure ends it."""
    elements = int(str(wishes["elements"]))
    plan = Plan(
        CollectiveKind.ALL_REDUCE, str(wishes.get("claim", elements)).encode(), positions,
        op=ReduceOp.SUM, dtype="float32", array_bytes=4 * elements,
    )  # fmt: skip
    expected = positions * (positions + 1) // 2
    status, done = 0, 0
    for _ in range(int(str(wishes.get("count", 1)))):
        array = np.full(elements, position + 1, np.float32)
        task = Task(plan, array, array, int(float(str(wishes["timeout_s"])) * 1e9))
        try:
            status = engine.run(task)
        except KeyboardInterrupt:
            return {"raised": "KeyboardInterrupt", "intact": bool((array == position + 1).all())}
        intact = bool((array == (expected if status == Outcome.COMMITTED else position + 1)).all())
        if status != Outcome.COMMITTED or not intact:
            break
        done += 1
    if status == Outcome.UNDECIDED:
        # As if nobody had: the others of the tests say so.
        intact = intact and engine.settle(task, committed=False) != Outcome.UNDECIDED  # type: ignore[attr-defined]
    claims = {each: claim.decode() for each, claim in task.claims().items()}
    return {"outcome": Outcome(status).name, "intact": intact, "positions": task.positions, "claims": claims,
            "done": done}  # fmt: skip


def on_board(arguments: list[str]) -> tuple[Turns, int, int]:
    """An engine, how many positions it has, and its own."""
    descriptor, size_bytes, positions, position = (int(argument) for argument in arguments)
    memory = SharedMemory.adopt(descriptor, size_bytes, common=True)
    return shm.Engine(memory.descriptor, memory.size_bytes, positions, position), positions, position


def on_links(arguments: list[str]) -> tuple[Turns, int, int]:
    """The same over links."""
    links, position = json.loads(arguments[0]), int(arguments[1])
    return ring.Engine(links, position), len(links), position


def main() -> None:
    engine, positions, position = (on_board if sys.argv[1] == "board" else on_links)(sys.argv[2:])
    for line in sys.stdin:
        print(json.dumps(carry_out(engine, positions, position, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
