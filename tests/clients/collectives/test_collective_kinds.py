"""Every kind of collective, in place and out of place, for every layout of memory, on both schedules and clients."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import clients
from tests.clients.conftest import Connect
from tests.clients.serving import ServingThread
from tests.clients.test_groups import on_all_ranks, schedule  # noqa: F401


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ServingThread]:
    """Over a Unix-domain socket, where ranks may have a board; test_groups.py goes over the other transports."""
    with ServingThread(f"unix://{tmp_path}/broker.sock") as serving:
        yield serving


RANKS = 3
ROOT = 1
ROWS = [RANKS, 50 * RANKS, 36_000 * RANKS]
"""In a row of a board, on its stages, and past the caches there."""


def contiguous(array: np.ndarray) -> np.ndarray:
    return array.copy()


def fortran(array: np.ndarray) -> np.ndarray:
    return np.asfortranarray(array)


def transposed(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.T).T


def sliced(array: np.ndarray) -> np.ndarray:
    room = np.zeros((2 * array.shape[0], *array.shape[1:]), array.dtype)
    room[::2] = array
    return room[::2]


def backwards(array: np.ndarray) -> np.ndarray:
    return array[::-1].copy()[::-1]


def swapped(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder())


LAYOUTS = [contiguous, fortran, transposed, sliced, backwards, swapped]


@cache
def input_of(rank: int, rows: int) -> np.ndarray:
    """Whole numbers, of which sums are exact in any order: over links they are not added in that of the ranks."""
    numbers = np.random.default_rng(rank).integers(-99, 99, (rows, 5)).astype(np.float32)
    numbers.flags.writeable = False
    return numbers


def expect(found: object, expected: np.ndarray) -> None:
    assert isinstance(found, np.ndarray)
    assert found.shape == expected.shape
    assert np.array_equal(found, expected)


def every_kind(group: clients.Group, rows: int, layout: Callable[[np.ndarray], np.ndarray]) -> None:
    """In place where there is such a thing, and into new memory."""
    rank, inputs = group.rank, [input_of(each, rows) for each in range(RANKS)]
    total, own = inputs[0] + inputs[1] + inputs[2], inputs[group.rank]
    share = slice(rank * rows // RANKS, (rank + 1) * rows // RANKS)
    mine = layout(own)
    assert group.all_reduce(mine) is mine
    expect(mine, total)
    mine = layout(own)
    reduced = group.reduce(mine, root=ROOT)
    assert reduced is (mine if rank == ROOT else None)
    expect(mine, total if rank == ROOT else own)
    mine = layout(own)
    assert group.broadcast(mine, root=ROOT) is mine
    expect(mine, inputs[ROOT])
    mine = layout(own)
    for found, expected in zip(group.all_gather(mine), inputs, strict=True):
        expect(found, expected)
    gathered = group.gather(mine, root=ROOT)
    assert (gathered is None) == (rank != ROOT)
    for found, expected in zip(gathered or inputs, inputs, strict=True):
        expect(found, expected)
    expect(group.reduce_scatter(mine), total[share])
    parts = [each[share] for each in inputs]
    expect(group.all_to_all(mine), np.concatenate(parts))
    for found, expected in zip(group.all_to_all(list(np.split(mine, RANKS))), parts, strict=True):
        expect(found, expected)
    expect(mine, own)


def every_kind_with_out(group: clients.Group, rows: int, layout: Callable[[np.ndarray], np.ndarray]) -> None:
    """Into arrays of the caller's; what is sent is not changed."""
    rank, inputs = group.rank, [input_of(each, rows) for each in range(RANKS)]
    total, own = inputs[0] + inputs[1] + inputs[2], inputs[group.rank]
    share = slice(rank * rows // RANKS, (rank + 1) * rows // RANKS)
    mine, out, part = layout(own), layout(np.zeros_like(own)), layout(np.zeros_like(own[share]))
    assert group.all_reduce(mine, out=out) is out
    expect(out, total)
    out[...] = 0
    assert group.reduce(mine, root=ROOT, out=out) is (out if rank == ROOT else None)
    expect(out, total if rank == ROOT else np.zeros_like(own))
    assert group.broadcast(mine if rank == ROOT else None, root=ROOT, out=out) is out
    expect(out, inputs[ROOT])
    whole, arrays = np.zeros((RANKS, *own.shape), ">f4"), [layout(np.zeros_like(own)) for _ in inputs]
    assert group.all_gather(mine, out=whole) is whole
    expect(whole, np.stack(inputs))
    assert group.all_gather(mine, out=arrays) is arrays
    expect(np.stack(arrays), np.stack(inputs))
    whole[...] = 0
    assert group.gather(mine, root=ROOT, out=whole) is (whole if rank == ROOT else None)
    expect(whole, np.stack(inputs) if rank == ROOT else np.zeros_like(whole))
    assert group.reduce_scatter(mine, out=part) is part
    expect(part, total[share])
    assert group.scatter(mine if rank == ROOT else None, root=ROOT, out=part) is part
    expect(part, inputs[ROOT][share])
    sent = list(np.split(mine, RANKS)) if rank == ROOT else None
    part[...] = 0
    assert group.scatter(sent, root=ROOT, out=part) is part
    expect(part, inputs[ROOT][share])
    assert group.all_to_all(mine, out=out) is out
    expect(out, np.concatenate([each[share] for each in inputs]))
    parts = [layout(np.zeros_like(own[share])) for _ in inputs]
    assert group.all_to_all(list(np.split(mine, RANKS)), out=parts) is parts
    expect(np.concatenate(parts), np.concatenate([each[share] for each in inputs]))
    expect(mine, own)


@pytest.mark.parametrize("kinds", [every_kind, every_kind_with_out])
@pytest.mark.parametrize("rows", ROWS)
def test_every_kind(connect: Connect, kinds: Callable[..., None], rows: int) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        for layout in LAYOUTS if rows < ROWS[-1] else (contiguous, sliced):
            kinds(group, rows, layout)
        return "fine"

    assert on_all_ranks(connect, RANKS, work) == ["fine"] * RANKS


def test_works_of_every_kind_overlap(connect: Connect) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        inputs = [input_of(rank, 6000) for rank in range(RANKS)]
        own, share = inputs[group.rank], slice(group.rank * 2000, (group.rank + 1) * 2000)
        reduced, copied = own.copy(), own.copy()
        works = [
            group.reduce(reduced, root=ROOT, async_op=True),
            group.broadcast(copied, root=ROOT, async_op=True),
            group.all_gather(own, async_op=True),
            group.gather(own, root=ROOT, async_op=True),
            group.scatter(own if group.rank == ROOT else None, ROOT, out=np.empty_like(own[share]), async_op=True),
            group.reduce_scatter(own, async_op=True),
            group.all_to_all(own, async_op=True),
        ]
        results = [each.wait(timeout_s=20.0) for each in reversed(works)][::-1]
        expect(results[2][2], inputs[2])
        expect(results[4], inputs[ROOT][share])
        expect(results[5], (inputs[0] + inputs[1] + inputs[2])[share])
        expect(results[6], np.concatenate([each[share] for each in inputs]))
        expect(copied, inputs[ROOT])
        return [results[0] is None, results[3] is None, all(each.done for each in works)]

    outcomes = on_all_ranks(connect, RANKS, work)
    assert outcomes == [[rank != ROOT, rank != ROOT, True] for rank in range(RANKS)]


@pytest.mark.parametrize("dtype", ["float64", "float16", ml_dtypes.bfloat16, "int8", "complex64", "bool", ">i4"])
def test_kinds_that_do_not_reduce_take_every_dtype(connect: Connect, dtype: object) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        own = np.full((4, 3), group.rank).astype(dtype)
        part = np.empty((2, 3), dtype)
        group.scatter(own if group.rank == 1 else None, 1, out=part)
        gathered = group.gather(own, 0)
        exchanged = group.all_to_all(own)
        return [np.count_nonzero(each) for each in (part, *(gathered or []), exchanged)]

    assert on_all_ranks(connect, 2, work) == [[6, 0, 12, 6], [6, 6]]


MISMATCHES = {
    "another root": (
        lambda group: group.reduce(np.ones(4), root=group.rank),
        {0: "reduce sum to rank 0 float64 (4,)", 1: "reduce sum to rank 1 float64 (4,)"},
    ),
    "another kind": (
        lambda group: (group.gather if group.rank else group.broadcast)(np.ones(4), 1),
        {0: "broadcast from rank 1 float64 (4,)", 1: "gather to rank 1 float64 (4,)"},
    ),
    "all to all of which one takes part": (
        lambda group: group.all_to_all(np.ones(4)) if group.rank else group.all_reduce(np.ones(4)),
        {0: "all_reduce sum float64 (4,)", 1: "all_to_all float64 (2, 2)"},
    ),
    "another shape": (
        lambda group: group.all_to_all(np.ones((2, 1 + group.rank))),
        {0: "all_to_all float64 (2, 1, 1)", 1: "all_to_all float64 (2, 1, 2)"},
    ),
    "another list": (
        lambda group: group.all_reduce([np.ones((2, 3)), np.ones(6)][:: 1 - 2 * group.rank]),
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISMATCHES)
def test_a_mismatch_is_told_on_all_ranks(connect: Connect, case: str) -> None:
    call, claims = MISMATCHES[case]

    def work(group: clients.Group, _: clients.Client) -> object:
        with pytest.raises(clients.CollectiveMismatchError) as caught:
            call(group)
        group.barrier()
        return caught.value.claims

    first, second = on_all_ranks(connect, 2, work)
    assert first == second
    assert claims in (None, first)


def test_a_root_that_is_gone_is_a_mismatch(connect: Connect) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        if group.rank == 2:
            group.leave()
            return "left"
        with pytest.raises(clients.GenerationChangedError):
            group.barrier(timeout_s=20.0)
        for call in (group.reduce, group.gather, group.broadcast):
            with pytest.raises(clients.CollectiveMismatchError, match="rank 2 is not in generation 2"):
                call(np.ones(3), 2)
        return "fine"

    assert on_all_ranks(connect, 3, work) == ["fine", "fine", "left"]


def test_wrong_arguments_are_refused_before_anything_is_begun(connect: Connect) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        ones, fixed = np.ones(4), np.ones(4)
        fixed.flags.writeable = False
        for call, problem in [
            (lambda: group.all_reduce(ones, out=np.ones(3)), r"must be float64\[4\]"),
            (lambda: group.all_reduce(ones, out=np.ones(4, np.float32)), r"must be float64\[4\]"),
            (lambda: group.all_reduce(ones, out=fixed), "read-only"),
            (lambda: group.all_reduce(ones[:3], out=ones[1:]), "overlaps"),
            (lambda: group.reduce_scatter(ones, out=ones[:2]), "overlaps"),
            (lambda: group.all_to_all(ones, out=ones), "overlaps"),
            (lambda: group.all_gather(ones, out=[ones, np.ones(4)]), "overlaps"),
            (lambda: group.all_gather(ones, out=[np.ones(4)]), "one array for each of 2 ranks"),
            (lambda: group.all_to_all(np.ones(3)), "not divisible"),
            (lambda: group.all_to_all([ones]), "one for each of the 2 ranks"),
            (lambda: group.all_to_all([ones, np.ones(3)]), "same shape"),
            (lambda: group.scatter(None, root=1 - group.rank), "is needed"),
            (lambda: group.scatter(None, root=group.rank), "not an array"),
            (lambda: group.reduce(ones, root=7), "must be a rank"),
            (lambda: group.all_reduce([]), "empty"),
            (lambda: group.all_reduce([ones, ones]), "share memory"),
            (lambda: group.all_reduce([ones, "no"]), "not an array"),
            (lambda: group.all_reduce([ones], out=[np.ones(3)]), "shapes and dtypes"),
            (lambda: group.all_reduce(ones, async_op=True, priority=1.5), "whole number"),
            (lambda: group.send(ones, group.rank), "another rank"),
            (lambda: group.send(ones, 1 - group.rank, tag=-1), "must be from 0"),
            (lambda: group.receive(fixed, 1 - group.rank), "read-only"),
        ]:
            with pytest.raises(clients.InvalidValue, match=problem):
                call()
        assert (ones == 1).all()
        return group.all_reduce(np.ones(1)).tolist()

    assert on_all_ranks(connect, 2, work) == [[2.0], [2.0]]


def test_an_out_that_is_the_array_means_in_place(connect: Connect) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        array = np.full((300, 400), group.rank + 1.0)
        assert group.all_reduce(array, out=array) is array
        view = array[:]
        group.all_reduce(array, out=view)
        return float(array.min()), float(array.max())

    assert on_all_ranks(connect, 2, work) == [(6.0, 6.0)] * 2


def lists(rank: int, scale: int) -> dict[str, np.ndarray]:
    """A model's arrays: of several sizes, dtypes and layouts."""
    random = np.random.default_rng(rank)
    return {
        "weight": random.integers(-99, 99, (40 * scale, 50)).astype(np.float32),
        "empty": np.empty((0, 3), np.float32),
        "transposed": random.integers(-99, 99, (7, 90 * scale)).astype(np.float32).T,
        "bias": random.integers(-99, 99, 3).astype(np.float32),
    }


@pytest.mark.parametrize("scale", [1, 2, 300])
@pytest.mark.parametrize("mixed", [False, True])
def test_lists_of_arrays_go_as_one(connect: Connect, scale: int, mixed: bool) -> None:
    def model(rank: int) -> dict[str, np.ndarray]:
        arrays = lists(rank, scale)
        return {**arrays, "step": np.arange(5) * rank, "half": np.full(9, rank, np.float16)} if mixed else arrays

    models = [model(rank) for rank in range(RANKS)]
    totals = {name: models[0][name] + models[1][name] + models[2][name] for name in models[0]}

    def check(found: object, expected: dict[str, np.ndarray]) -> None:
        assert isinstance(found, dict)
        assert list(found) == list(expected)
        for name, array in expected.items():
            expect(found[name], array)

    def work(group: clients.Group, _: clients.Client) -> object:
        own, out = model(group.rank), {name: np.zeros_like(each) for name, each in models[0].items()}
        assert group.all_reduce(own) is own
        check(own, totals)
        own = model(group.rank)
        assert group.all_reduce(own, out=out) is out
        check(out, totals)
        pending = group.all_reduce(own, async_op=True)
        assert pending.wait(timeout_s=20.0) is own
        check(own, totals)
        own = model(group.rank)
        assert group.broadcast(own, root=ROOT) is own
        check(own, models[ROOT])
        assert group.broadcast(model(ROOT) if group.rank == ROOT else None, ROOT, out=out) is out
        check(out, models[ROOT])
        for found, expected in zip(group.all_gather(model(group.rank)), models, strict=True):
            check(found, expected)
        as_list = group.all_gather(list(model(group.rank).values()))
        expect(as_list[2][0], models[2]["weight"])
        many = [np.full(4, group.rank, np.float32), np.full((2, 2), group.rank, np.float32)]
        group.all_reduce_many(many)
        # As optimizers take them.
        named = {"bias": np.full(4, 2 * group.rank, np.float32)}
        group.all_reduce_many(named)
        return [float(each.mean()) for each in (*many, *named.values())]

    assert on_all_ranks(connect, RANKS, work) == [[1.0, 1.0, 2.0]] * RANKS


def test_a_failed_list_has_changed_nothing(connect: Connect) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        arrays = [np.ones(9, np.float32), np.ones(3 + group.rank), np.ones(800_000, np.float32)]
        with pytest.raises(clients.CollectiveMismatchError):
            group.all_reduce(arrays)
        assert all((array == 1).all() for array in arrays)
        return group.all_reduce(np.ones(1)).tolist()

    assert on_all_ranks(connect, 2, work) == [[2.0], [2.0]]


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_torch_tensors_of_every_layout(connect: Connect) -> None:
    import torch

    def work(group: clients.Group, _: clients.Client) -> object:
        tensors = [torch.ones(4, 6), torch.ones(6, 4).t(), torch.ones(8, 6)[::2], torch.ones(4, dtype=torch.bfloat16)]
        for tensor in tensors:
            assert group.all_reduce(tensor) is tensor
        group.all_reduce(tensors)
        out = torch.zeros(4, 6)
        group.all_reduce(tensors[1].t().contiguous().t()[:4], out=out)
        received = torch.zeros(2, 6)
        group.scatter(tensors[0] if group.rank == 0 else None, 0, out=received)
        return [float(tensor.double().mean()) for tensor in (*tensors, out, received)]

    assert on_all_ranks(connect, 2, work) == [[4.0, 4.0, 4.0, 4.0, 8.0, 4.0]] * 2
