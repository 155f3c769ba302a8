"""Failures that some rank of a group has not heard of, because it has not started the operation."""

from __future__ import annotations

from broker import limits
from broker.collectives.effects import Failure


class Failures:
    """Failed operations that some rank has not started and so not heard of, at most `limits.FAILED_OPERATIONS_MAX`.

    A rank can be stuck while the others try again and again. The oldest failures are then forgotten, except that they
    were failures: of each of these the late rank hears what is known of the last one forgotten.
    """

    __slots__ = ("_failures", "_forgotten", "_forgotten_sequence")

    def __init__(self) -> None:
        self._failures: dict[int, Failure] = {}
        self._forgotten: Failure | None = None
        self._forgotten_sequence = 0

    def __len__(self) -> int:
        return len(self._failures)

    def remember(self, sequence: int, failure: Failure) -> None:
        """Keep a failure for the ranks that have not started this operation."""
        self._failures[sequence] = failure
        if len(self._failures) > limits.FAILED_OPERATIONS_MAX:
            oldest = min(self._failures)
            self._forgotten = self._failures.pop(oldest)
            self._forgotten_sequence = max(oldest, self._forgotten_sequence)

    def find(self, sequence: int) -> Failure | None:
        """The failure of an operation that is not in progress, or None when it has not begun."""
        return self._forgotten if sequence <= self._forgotten_sequence else self._failures.get(sequence)

    def forget_before(self, sequence: int) -> None:
        """All ranks have started the operations before this one."""
        for told in [number for number in self._failures if number < sequence]:
            del self._failures[told]
