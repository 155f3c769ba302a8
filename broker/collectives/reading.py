# ruff: noqa: F821
# mypy: disable-error-code="name-defined,attr-defined"
"""What the broker reads on a board (board.h): how far each position is, and what it says of its operations.

Members write there, so nothing of it is believed: what comes from here is some numbers and short bytes, whatever the
members do. Only the compiled module can read; without it there are no boards.
"""

from __future__ import annotations

from typing import NamedTuple

from broker.errors import InvalidValue

try:
    import cython
except ModuleNotFoundError:
    from broker import uncompiled as cython

POSITIONS_MAX = 64
LOG_ENTRIES = 32
"""Operations of which a position's log tells, the newest ones."""


class Standing(NamedTuple):
    """How far a position is: sequences of operations, and of the last three sequence << 24 | chunks."""

    begun: int
    arrived: int
    left: int
    staged: int
    reduced: int
    collected: int


class Entry(NamedTuple):
    """What a position says of an operation: when it came to it, when it was done (0: not told), and its claim."""

    began_ns: int
    left_ns: int
    claim: bytes


class Reader:
    """Reads a board; it keeps the memory mapped."""

    def __init__(self, memory: object, address: int, positions: int) -> None:
        """Args:
            memory: is kept.
            address: of a board's first byte.
            positions: of the board, as the broker has made it: what the board says is not asked.

        Raises:
            InvalidValue: there is no such board.
        """
        if not cython.compiled or not address or not 0 < positions <= POSITIONS_MAX:
            raise InvalidValue("positions", positions, f"must be from 1 to {POSITIONS_MAX}, and the module compiled")
        self._memory = memory
        self.positions = positions
        self._board = cython.cast("const void *", cython.cast(uintptr_t, address))

    def pulse(self) -> int:
        """A number that changes when any position goes on: all counters together. It costs little to ask for it."""
        total = 0
        for position in range(self.positions):
            tb_read_standing(self._board, position, cython.address(standing))
            total += standing.begun + standing.arrived + standing.left
            total += standing.staged + standing.reduced + standing.collected
        return total

    def standings(self) -> list[Standing]:
        """How far each position is."""
        found = []
        for position in range(self.positions):
            tb_read_standing(self._board, position, cython.address(standing))
            found.append(
                Standing(
                    standing.begun, standing.arrived, standing.left, standing.staged, standing.reduced,
                    standing.collected,
                )
            )  # fmt: skip
        return found

    def entry(self, position: int, sequence: int) -> Entry | None:
        """What a position says of an operation, if it still does."""
        at = self._checked(position)
        wanted = sequence
        if not tb_read_entry(self._board, at, wanted, cython.address(found)):
            return None
        claim = b""
        if found.claim_bytes <= 228:
            claim = cython.cast("const unsigned char *", found.claim)[: found.claim_bytes]
        return Entry(found.began_ns, found.left_ns, claim)

    def verdict(self, sequence: int) -> tuple[int, int, int]:
        """What stands where an operation's verdict belongs: of which operation it is, the code, and the author."""
        wanted = sequence
        word = tb_read_verdict(self._board, wanted)
        return word >> 16, word & 0xFF, (word >> 8) & 0xFF

    def failure(self, author: int, sequence: int) -> tuple[int, int, dict[int, bytes]] | None:
        """What the first to see a failure has written of it: bits of positions, a time-out in ns, and their claims."""
        record = tb_read_record(self._board, self._checked(author), sequence)
        if record == cython.NULL:
            return None
        bits = record.positions
        claims = {}
        for position in range(self.positions):
            at = position
            if bits >> at & 1:
                # A copy first: what is there may change between a check and a use.
                claim = record.claims[at]
                size = claim.bytes if claim.bytes <= 508 else 0
                claims[position] = cython.cast("const unsigned char *", claim.data)[:size]
        return bits, record.timeout_ns, claims

    def _checked(self, position: int) -> int:
        if not 0 <= position < self.positions:
            raise InvalidValue("position", position, f"must be from 0 to {self.positions - 1}")
        return position
