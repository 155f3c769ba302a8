"""Topics and queues keep their promises, whatever their clients do: a model-based test.

Real clients but for their sockets talk to a real broker but for its sockets; a reference that knows only what
docs/api.md promises (tests/model/reference.py) says after each step whether everybody got what is theirs. A step is
one action of a client (publishing, reading, subscribing, a link that stops, a death ...), after which everything is
checked. There are 40,000 of them, the same ones each time, and 100,000 in a thorough run. TENSORBUS_MODEL_STEPS runs
more, each time others: see CONTRIBUTING.md.

Modelled: sequences, rings and replay; batches and large messages, also those that are given up; lanes; the four
overflow policies with their counts of drops and their gaps; the credit of both sides and who is held back; queue
groups without acknowledgement; links that stop anywhere; clients that are killed.

Not modelled: acknowledged work queues, requests and replies, declared policies, max_lag, $sys/pressure, collectives,
clients that reconnect, time-outs and heartbeats, gaps of members of queue groups, the order of a replay across
topics, which of several messages is dropped when bytes run out or lanes compete, and, where lanes overtake each other
on one topic, in which message a gap is told.
"""

from __future__ import annotations

import os
import secrets

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model import choices
from tests.model.machine import Steps
from tests.thorough import THOROUGH

STEPS_IN_ALL = int(os.environ.get("TENSORBUS_MODEL_STEPS", "0")) or (100_000 if THOROUGH else 40_000)
IDS = 16
STEPS_PER_ID = -(-STEPS_IN_ALL // IDS)
DRAWS_PER_EXAMPLE = 42
STEPS_PER_EXAMPLE = 240
"""About; a run is as long as what is left of the steps, at most 30 examples."""
IS_LONG = "TENSORBUS_MODEL_STEPS" in os.environ
FIRST_SEED = secrets.randbits(32) if IS_LONG else 0


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that a few messages reach."""
    monkeypatch.setattr("clients.publishing.streaming.CHUNK_BYTES", choices.CHUNK_BYTES)
    monkeypatch.setattr("broker.state.delivery.BLOCKED_BYTES_MAX", choices.BLOCKED_BYTES)
    monkeypatch.setattr("broker.topics.queues.BLOCKED_BYTES_MAX", choices.BLOCKED_BYTES)
    monkeypatch.setattr("broker.state.delivery.STREAM_LAG_BYTES_MAX", choices.LAG_BYTES)


def hardly_seen(seen: dict[str, int]) -> list[str]:
    """What has to happen, and has too seldom."""
    everything = ("batches", "large", "single", "aborted", "held back", "taken", "dropped", "calms", *choices.POLICIES)
    return [what for what in everything if seen.get(what, 0) <= STEPS_PER_ID // 500]


@pytest.mark.timeout(100_000 if IS_LONG else 240)
@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("part", range(IDS))
def test_every_subscription_gets_what_is_promised(part: int) -> None:
    options = settings(
        derandomize=False,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        stateful_step_count=DRAWS_PER_EXAMPLE,
        suppress_health_check=list(HealthCheck),
        # Shrinking takes minutes: a short run shows the failure as it is.
        phases=[Phase.generate, Phase.shrink] if IS_LONG else [Phase.generate],
    )
    Counted = type("Counted", (Steps,), {"steps": 0, "seen": {}})  # noqa: N806
    runs = 0
    # What an id meets is chance, and changes with the code: one that has met something too seldom goes on.
    while Counted.steps < STEPS_PER_ID or (hardly_seen(Counted.seen) and Counted.steps < 2 * STEPS_PER_ID):
        number = FIRST_SEED + part + IDS * runs
        print(f"seed {number}")
        # The first example of a run is the plainest one there is, so one alone would show nothing.
        left = max(STEPS_PER_ID - Counted.steps, 8 * STEPS_PER_EXAMPLE if Counted.steps >= STEPS_PER_ID else 0)
        examples = 1 + min(29, left // STEPS_PER_EXAMPLE)
        run_state_machine_as_test(seed(number)(Counted), settings=settings(options, max_examples=examples))
        runs += 1
    print(Counted.steps, Counted.seen)
    assert Counted.steps >= STEPS_PER_ID
    assert hardly_seen(Counted.seen) == [], f"has hardly happened: {Counted.seen}"
