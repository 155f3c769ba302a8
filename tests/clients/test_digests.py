"""Digests: what ranks say that they hold, round by round."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

import clients
from clients import aio
from clients.digests import digest_of_arrays
from tests.clients.ranks import PATIENCE_S, all_together, embedded_url


def test_arrays_with_the_same_elements_have_the_same_digest_however_they_lie() -> None:
    array = np.arange(12.0).reshape(3, 4)
    digest = digest_of_arrays(array)
    assert digest == digest_of_arrays(np.asfortranarray(array)) == digest_of_arrays(array[:, ::-1][:, ::-1])
    assert len(digest) == 32


@pytest.mark.parametrize(
    "other",
    [np.arange(12.0).reshape(4, 3), np.arange(12, dtype=np.float32).reshape(3, 4), np.arange(1, 13.0).reshape(3, 4)],
    ids=["shape", "dtype", "elements"],
)
def test_other_arrays_have_other_digests(other: np.ndarray) -> None:
    assert digest_of_arrays(np.arange(12.0).reshape(3, 4)) != digest_of_arrays(other)


def test_what_is_no_group_or_no_client_is_told_so() -> None:
    with clients.connect(embedded_url()) as bus:
        with pytest.raises(clients.InvalidValue, match=r"group 'dp': is no group: give what bus.group"):
            clients.Digests(bus, "dp")
        group = bus.group("dp", world_size=1)
        with pytest.raises(clients.InvalidValue, match="bus 'dp': is no client"):
            clients.Digests("dp", group)
        for wrong in ((bus, "dp"), (bus, group)):
            with pytest.raises(clients.InvalidValue):
                aio.Digests(*wrong)
        assert clients.Digests(bus, group).note(np.zeros(3))


def test_a_bit_in_any_array_of_many_changes_it() -> None:
    state = {"a": np.zeros(3), "b": [np.zeros(2), np.zeros(1)]}
    before = digest_of_arrays(state)
    state["b"][1][0] = -0.0  # type: ignore[index]
    assert digest_of_arrays(state) != before


def test_the_same_arrays_under_other_names_are_something_else() -> None:
    assert digest_of_arrays({"a": np.zeros(3)}) != digest_of_arrays({"b": np.zeros(3)})


def test_what_is_no_array_is_refused() -> None:
    with pytest.raises(clients.InvalidValue, match="is no array"):
        digest_of_arrays({"a": "words"})


def test_each_rank_says_what_it_holds_in_each_round() -> None:
    url = embedded_url()

    def rank(number: int) -> list[str]:
        with clients.connect(url, name=f"trainer-{number}") as bus:
            group = bus.group("dp", world_size=2, rank=number, timeout_s=PATIENCE_S)
            digests = clients.Digests(bus, group, every=2)
            found = []
            for step in range(4):
                array = group.all_reduce(np.full(5, float(step)), timeout_s=PATIENCE_S)
                found.append(digests.note(array, "sum"))
            bus.flush()
            return found

    with clients.connect(url) as bus, bus.subscribe("digests/#") as subscription:
        one, other = all_together(lambda: rank(0), lambda: rank(1))
        notes = [subscription.next(PATIENCE_S) for _ in range(4)]
    assert one == other
    assert [bool(digest) for digest in one] == [True, False, True, False]
    assert {note.topic for note in notes} == {"digests/dp/0", "digests/dp/1"}
    first = next(note.value for note in notes if note.topic == "digests/dp/1")
    assert first == {"group": "dp", "generation": 1, "round": 0, "rank": 1, "label": "sum", "digest": one[0]}


def test_every_is_above_0() -> None:
    with clients.connect(embedded_url()) as bus:
        group = bus.group("alone", world_size=1, rank=0)
        with pytest.raises(clients.InvalidValue, match="every 0: is below 1"):
            clients.Digests(bus, group, every=0)


def test_ranks_of_both_kinds_of_client_say_the_same() -> None:
    url = embedded_url()

    def synchronous() -> list[str]:
        with clients.connect(url) as bus:
            group = bus.group("mixed", world_size=2, rank=0, timeout_s=PATIENCE_S)
            digests = clients.Digests(bus, group, every=2)
            return [digests.note(group.all_reduce(np.full(5, float(step))), "sum") for step in range(3)]

    async def asynchronous() -> list[str]:
        async with await aio.connect(url) as bus:
            group = await bus.group("mixed", world_size=2, rank=1, timeout_s=PATIENCE_S)
            digests = aio.Digests(bus, group, every=2)
            found = [await digests.note(await group.all_reduce(np.full(5, float(step))), "sum") for step in range(3)]
            assert (digests.topic, digests.round) == ("digests/mixed/1", 3)
            with pytest.raises(clients.InvalidValue, match="every 0: is below 1"):
                aio.Digests(bus, group, every=0)
            return found

    with clients.connect(url) as bus, bus.subscribe("digests/mixed/#") as subscription:
        one, other = all_together(synchronous, lambda: asyncio.run(asynchronous()))
        notes = sorted((subscription.next(PATIENCE_S).value for _ in range(4)), key=lambda note: note["rank"])
    assert one == other
    assert [bool(digest) for digest in one] == [True, False, True]
    assert [(note["rank"], note["round"], note["digest"]) for note in notes] == [
        (0, 0, one[0]), (0, 2, one[2]), (1, 0, one[0]), (1, 2, one[2]),
    ]  # fmt: skip
