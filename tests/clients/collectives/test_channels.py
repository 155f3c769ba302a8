"""Sends and receives between two ranks of a group, with both kinds of client."""

from __future__ import annotations

import threading

import ml_dtypes
import numpy as np
import pytest

import clients
from broker import limits
from tests.clients.conftest import Connect
from tests.clients.test_groups import PATIENCE_S, on_all_ranks, schedule  # noqa: F401


def test_arrays_arrive_in_their_order_and_the_other_ranks_have_no_part(connect: Connect) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        sizes = [0, 1, 1000, 700_000]
        if group.rank == 0:
            for size in sizes:
                group.send(np.arange(size, dtype=np.float32), 2)
        elif group.rank == 2:
            for size in sizes:
                array = np.zeros(size, np.float32)
                assert group.receive(array, 0) is array
                assert np.array_equal(array, np.arange(size, dtype=np.float32))
        return "fine"

    assert on_all_ranks(connect, 3, work) == ["fine"] * 3


def test_tags_are_apart_and_both_ways_may_be_under_way(connect: Connect) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        other = 1 - group.rank
        works = [group.send(np.full(200_000, 10 * group.rank + tag), other, tag, async_op=True) for tag in range(3)]
        received = [group.receive(np.empty(200_000, np.int64), other, tag) for tag in (2, 0, 1)]
        for each in works:
            each.wait(timeout_s=PATIENCE_S)
        return [int(array[-1]) for array in received]

    assert on_all_ranks(connect, 2, work) == [[12, 10, 11], [2, 0, 1]]


def test_a_receive_without_an_array_takes_what_comes(connect: Connect) -> None:
    sent = [
        np.ones((600, 700), np.float32).T,
        np.array(7.5),
        np.empty((0, 3), np.int8),
        np.full(5, 1.5, ml_dtypes.bfloat16),
        np.arange(6, dtype=">u2")[::-2],
    ]

    def work(group: clients.Group, _: clients.Client) -> object:
        if group.rank == 0:
            for array in sent:
                group.send(array, 1)
            return "sent"
        for array in sent:
            found = group.receive(None, 0)
            assert found.dtype == array.dtype.newbyteorder("=")
            assert found.shape == array.shape
            assert np.array_equal(found, array)
        return "received"

    assert on_all_ranks(connect, 2, work) == ["sent", "received"]


def test_a_receive_into_another_shape_is_told_to_both(connect: Connect) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        array = np.ones(3 + group.rank)
        call = group.send if group.rank == 0 else group.receive
        with pytest.raises(clients.CollectiveMismatchError) as caught:
            call(array, 1 - group.rank)
        if group.rank == 0:
            group.send(array, 1)
        else:
            group.receive(array[:3], 0)
        return caught.value.claims

    claims = {0: "send from rank 0 float64 (3,)", 1: "send from rank 0 float64 (4,)"}
    assert on_all_ranks(connect, 2, work) == [claims] * 2


def test_a_rank_that_does_not_come_is_named_and_hears_of_it_later(connect: Connect) -> None:
    late = threading.Event()

    def work(group: clients.Group, _: clients.Client) -> object:
        array = np.ones(3)
        if group.rank == 1:
            late.wait(PATIENCE_S)
        call, timeout_s = (group.send, 0.2) if group.rank == 0 else (group.receive, PATIENCE_S)
        with pytest.raises(clients.RankTimeoutError) as caught:
            call(array, 1 - group.rank, timeout_s=timeout_s)
        late.set()
        return caught.value.missing_ranks

    assert on_all_ranks(connect, 2, work) == [[1], [1]]


def test_a_peer_that_is_lost_ends_what_waits_for_it_and_is_told_once(connect: Connect) -> None:
    begun = threading.Event()

    def work(group: clients.Group, bus: clients.Client) -> object:
        if group.rank == 1:
            begun.wait(PATIENCE_S)
            bus.close()
            return "closed"
        works = [group.receive(None, 1, tag, async_op=True, timeout_s=PATIENCE_S) for tag in range(3)]
        begun.set()
        for each in works:
            with pytest.raises(clients.BrokerError) as caught:
                each.wait(timeout_s=PATIENCE_S)
            assert isinstance(caught.value, clients.GenerationChangedError)
        with pytest.raises(clients.InvalidValue, match="none of those present"):
            group.send(np.ones(1), 1)
        return group.all_reduce(np.ones(1)).tolist()

    assert on_all_ranks(connect, 2, work) == [[1.0], "closed"]


def test_more_than_the_broker_takes_at_once_waits_its_turn(connect: Connect) -> None:
    tags, each = 3, limits.OPERATIONS_AHEAD // 2

    def work(group: clients.Group, _: clients.Client) -> object:
        if group.rank == 0:
            works = [
                group.send(np.array([tag, number]), 1, tag, async_op=True)
                for number in range(each)
                for tag in range(tags)
            ]
            for one in works:
                one.wait(timeout_s=PATIENCE_S)
            return "sent"
        for number in range(each):
            for tag in reversed(range(tags)):
                assert group.receive(None, 0, tag).tolist() == [tag, number]
        return "received"

    assert on_all_ranks(connect, 2, work) == ["sent", "received"]
