"""Checksums of what each rank holds, round by round, so that a recording shows which rank was the first to differ.

Ranks that reduce the same gradients hold the same parameters, to the bit, for as long as nothing goes wrong: a random
seed, a different version of a library, a broken memory module. When losses drift apart it is long too late to say where
it began. A digest of each round costs a pass over the memory and a message of some hundred bytes:

    digests = clients.Digests(bus, group)
    ...
    group.all_reduce(gradients)
    digests.note(gradients, "gradients")        # on digests/<group>/<rank>

`tensorbus record 'digests/#' --output FILE` keeps them, and `tensorbus diff FILE` names the first round that differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Final

from broker.errors import InvalidValue
from broker.protocol.tensors import Array, as_array, describe, flat_bytes
from clients.client import Client
from clients.collectives.group_base import GroupBase
from clients.connection.checks import whole_number
from clients.groups import Group

TOPIC: Final = "digests"
DIGEST_BYTES: Final = 16


class Rounds:
    """What a rank's digests of both kinds of client have in common: the rounds, and what is told of one.

    Attributes:
        topic: where they are published: `digests/<group>/<rank>`.
        round: of the next note, from 0 upwards; every rank makes the same notes in the same order.
    """

    def __init__(self, group: GroupBase, every: int) -> None:
        """Raises:
        InvalidValue: the group is none, or `every` is below 1.
        """
        if not isinstance(group, GroupBase):
            raise InvalidValue("group", group, "is no group: give what bus.group(name, world_size=...) has returned")
        if whole_number("every", every) < 1:
            raise InvalidValue("every", every, "is below 1")
        self.topic = f"{TOPIC}/{group.name}/{group.rank}"
        self.round = 0
        self._group = group
        self._every = every

    def _begin(self) -> int | None:
        """Counts a round; returns its number if it is looked at."""
        number, self.round = self.round, self.round + 1
        return None if number % self._every else number

    def _told(self, number: int, label: str, digest: str) -> dict[str, object]:
        """What is published of a round."""
        group = self._group
        return {
            "group": group.name,
            "generation": group.generation,
            "round": number,
            "rank": group.rank,
            "label": label,
            "digest": digest,
        }

    def __repr__(self) -> str:
        return f"<Digests {self.topic} round={self.round}>"


class Digests(Rounds):
    """One rank's digests. Threads may not share it; see Rounds for its attributes."""

    def __init__(self, bus: Client, group: Group, *, every: int = 1) -> None:
        """Args:
        bus: publishes them.
        group: whose ranks are to be compared.
        every: of so many rounds, one is looked at.

        Raises:
            InvalidValue: the client or the group is none, or `every` is below 1.
        """
        super().__init__(group, every)
        if not isinstance(bus, Client):
            raise InvalidValue("bus", bus, "is no client: give what clients.connect() has returned")
        self._bus = bus

    def note(self, value: object, label: str = "") -> str:
        """Publishes a digest of what this rank holds now, and counts a round.

        Args:
            value: an array, or a list, tuple or dict of arrays, in an order that is the same on all ranks.
            label: what it is, in a word; the same on all ranks.

        Returns:
            The digest; empty in a round that is not looked at.

        Raises:
            InvalidValue: something in it is no array.
            ConnectionClosed: the client is closed.
        """
        number = self._begin()
        if number is None:
            return ""
        digest = digest_of_arrays(value)
        self._bus.publish(self.topic, self._told(number, label, digest))
        return digest


def digest_of_arrays(value: object) -> str:
    """BLAKE2b of 16 bytes over dtypes, shapes and elements of all arrays in a value, in hexadecimal.

    Arrays with the same elements in another order in memory have the same digest.

    Raises:
        InvalidValue: something in it is no array.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for name, array in _arrays_in(value, ""):
        meta = describe(array)
        digest.update(f"{name} {meta.dtype} {list(meta.shape)} {meta.byte_order}\n".encode())
        digest.update(flat_bytes(array if array.flags.c_contiguous else array.copy("C")))
    return digest.hexdigest()


def _arrays_in(value: object, name: str) -> Iterator[tuple[str, Array]]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _arrays_in(entry, f"{name}/{key}")
    elif isinstance(value, (list, tuple)):
        for index, entry in enumerate(value):
            yield from _arrays_in(entry, f"{name}/{index}")
    else:
        array = as_array(value)
        if array is None:
            raise InvalidValue("value of type", type(value).__name__, "is no array; digests are of arrays")
        yield name, array
