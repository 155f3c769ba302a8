"""An `out` like one before takes the shortest way: the results are the same, and so is what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import clients
from broker.errors import CollectiveMismatchError, InvalidValue
from tests.clients.conftest import Connect
from tests.clients.test_groups import on_all_ranks


@pytest.mark.parametrize("elements", [1, 1000, 100_000, 700_000])
def test_each_call_reduces_what_its_array_holds_into_its_own_out(connect: Connect, elements: int) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        arrays = [np.empty(elements, np.float32) for _ in range(3)]
        for turn in range(6):
            array, out, other = (arrays[(turn + each) % 3] for each in range(3))
            array[:], out[:], other[:] = group.rank + turn, -1, -2
            assert group.all_reduce(array, out=out) is out
            assert (array == group.rank + turn).all()
            assert (out == 1 + 2 * turn).all()
            assert (other == -2).all()
            assert group.all_reduce(other) is other
            assert (other == -4).all()
        return None

    on_all_ranks(connect, 2, work)


def test_an_out_that_cannot_be_is_refused_after_calls_like_it(connect: Connect) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        array, out = np.ones(1000, np.float32), np.zeros(1000, np.float32)
        read_only = np.zeros(1000, np.float32)
        read_only.flags.writeable = False
        lapping = np.ones(1500, np.float32)
        for _ in range(3):
            group.all_reduce(array, out=out)
        refused: list[tuple[np.ndarray, object]] = [
            (array, np.zeros(1000, np.float64)),
            (array, np.zeros(999, np.float32)),
            (array, np.zeros((10, 100), np.float32)),
            (array, read_only),
            (array, [out]),
            (array, b"1234"),
            (lapping[:1000], lapping[500:]),
        ]
        for source, target in refused:
            with pytest.raises(InvalidValue):
                group.all_reduce(source, out=target)
        assert (array == 1).all()
        assert (out == 2).all()
        return None

    on_all_ranks(connect, 2, work)


def test_what_is_not_like_one_before_takes_the_long_way(connect: Connect) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        array, out, wide = np.ones(1000, np.float32), np.zeros(1000, np.float32), np.zeros(2000, np.float32)
        for _ in range(3):
            group.all_reduce(array, out=out)
            assert group.all_reduce(array, out=wide[::2]) is not None
            assert (wide[::2] == 2).all()
            assert (wide[1::2] == 0).all()
            assert group.all_reduce(array, out=array) is array
            assert (array == 2).all()
            array[:] = 1
        return None

    on_all_ranks(connect, 2, work)


def test_a_failure_leaves_out_as_it_was(connect: Connect) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        array, out = np.ones(1000, np.float32), np.zeros(1000, np.float32)
        group.all_reduce(array, out=out)
        with pytest.raises(CollectiveMismatchError):
            group.all_reduce(array, "sum" if group.rank else "max", out=out)
        assert (out == 2).all()
        return None

    on_all_ranks(connect, 2, work)
