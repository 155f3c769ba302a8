"""What stands for device arrays is known by its identity, and so is kept as long as it is known."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest

from clients.collectives.staging import READ, WRITTEN, _Staging
from tests import cupy_stand_in as stand_in

MANY = 100
"""The memory of what is let go is used again at once, by the next objects of its kind."""


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = stand_in.module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def test_an_argument_that_its_caller_has_let_go_is_not_taken_for_the_next_one(cupy: ModuleType) -> None:
    staging = _Staging(())
    for number in range(MANY):
        standing = staging.stand_in([cupy.array(np.full(3, number))], READ)
        assert isinstance(standing, list)
        assert standing[0].tolist() == [number] * 3


def test_a_new_result_is_not_taken_for_a_stand_in_that_the_operation_has_let_go(cupy: ModuleType) -> None:
    staging = _Staging(())
    originals = [cupy.array(np.zeros(3)) for _ in range(MANY)]
    for original in originals:
        staging.stand_in(original, WRITTEN)
    results = [staging.result(np.full(3, number)) for number in range(MANY)]
    assert not {id(original) for original in originals} & {id(result) for result in results}


def test_an_array_that_is_given_twice_has_one_stand_in(cupy: ModuleType) -> None:
    staging, original = _Staging(()), cupy.array(np.zeros(3))
    assert staging.stand_in(original, READ) is staging.stand_in(original, READ)
    assert staging.result(staging.stand_in(original, READ)) is original
