"""Compiled and plain, the same module says the same."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import ProtocolError
from broker.protocol import batches
from clients.reading import messages
from tests.conftest import ROOT, compiled_modules

LIBRARIES = compiled_modules()
ENTRIES = st.lists(st.tuples(st.integers(0, 255), st.integers(0, (1 << 63) - 1), st.binary(), st.binary()), max_size=9)


def plain(name: str) -> ModuleType:
    """A module from its source, whatever it was compiled to; nothing else sees it."""
    path = ROOT / (name.replace(".", "/") + ".py")
    spec = importlib.util.spec_from_file_location(f"plain.{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


PLAIN_BATCHES, PLAIN_MESSAGES = plain("broker.protocol.batches"), plain("clients.reading.messages")
PUBLICATION = messages.Publication("topic", "sender")


def filled(module: ModuleType, entries: list[batches.Entry]) -> batches.Batch:
    batch = module.Batch(0)
    for entry in entries:
        batch.add(*entry)
    return batch


@pytest.mark.parametrize("source", LIBRARIES, ids=lambda source: source.stem)
def test_what_is_in_use_is_what_was_compiled(source: object) -> None:
    name = ".".join(source.relative_to(ROOT).with_suffix("").parts)
    importlib.import_module(name)
    assert sys.modules[name].__file__ == str(LIBRARIES[source] or source)


@given(ENTRIES)
def test_a_batch_has_the_same_bytes(entries: list[batches.Entry]) -> None:
    compiled, interpreted = filled(batches, entries), filled(PLAIN_BATCHES, entries)
    assert (compiled.count, compiled.size_bytes) == (interpreted.count, interpreted.size_bytes)
    assert compiled.close() == interpreted.close()


@given(ENTRIES, st.integers(0, (1 << 63) - 10))
def test_a_batch_is_read_as_the_same_messages(entries: list[batches.Entry], first: int) -> None:
    payload = filled(batches, entries).close()
    found = [
        [
            (message.sequence, message.published_ns, message._lane, message._content, message._body, message.payload)
            for message in module.unpack_batch(payload, len(entries), PUBLICATION, first, 1, None)
        ]
        for module in (messages, PLAIN_MESSAGES)
    ]
    assert found[0] == found[1]
    assert len(found[0]) == len(entries)


@given(st.binary(max_size=60), st.integers(0, 4))
def test_rubbish_is_refused_by_both_or_by_none(payload: bytes, count: int) -> None:
    outcomes = []
    for module in (messages, PLAIN_MESSAGES):
        try:
            outcomes.append(len(module.unpack_batch(payload, count, PUBLICATION, 1, 1, None)))
        except ProtocolError:
            outcomes.append(None)
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("limit", ["bytes", "time", "messages", "length"])
def test_a_batch_takes_more_until_it_has_to_leave(limit: str) -> None:
    taken = []
    for module in (batches, PLAIN_BATCHES):
        batch = module.Batch(100, wall_offset_ns=1000, size_max=200 if limit == "bytes" else 1 << 20)
        batch.count_max = 3 if limit == "messages" else 50
        payload = bytes(9000 if limit == "length" else 64)
        added = [batch.add_more(1, payload, 10 * number) for number in range(20)]
        taken.append((sum(added), batch.count, batch.size_bytes, batch.last_ns, batch.close()))
        assert not batch.add_more(1, b"", 0)
    assert taken[0] == taken[1]
    assert taken[0][0] == {"bytes": 2, "time": 10, "messages": 2, "length": 0}[limit]
