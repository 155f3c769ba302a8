from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tests.clients.covering import covering


@given(st.lists(st.fixed_dictionaries({"kind": st.integers(0, 3), "size": st.integers(0, 5)}), max_size=24))
def test_each_value_that_occurs_is_chosen(combinations: list[dict[str, int]]) -> None:
    chosen = [combinations[place] for place in covering(combinations)]
    for name in ("kind", "size"):
        assert {each[name] for each in chosen} == {each[name] for each in combinations}


def test_of_a_whole_product_as_many_are_chosen_as_the_longest_parameter_has_values() -> None:
    product = [
        {"kind": kind, "size": size, "op": op} for kind, size, op in itertools.product(range(2), range(3), range(5))
    ]
    assert len(covering(product)) == 5


def test_of_one_parameter_all_are_chosen_and_without_any_the_first() -> None:
    assert covering([{"kind": kind} for kind in range(4)]) == [0, 1, 2, 3]
    assert covering([{}, {}]) == [0]
    assert covering([]) == []
