"""What a caller can wait for: something that becomes ready, and an answer that comes."""

from __future__ import annotations

from collections.abc import Callable

from broker.errors import BrokerError
from broker.protocol.frames import Frame


class Signal:
    """A condition that is ready or not. `callbacks` are called, once each, when it becomes ready."""

    __slots__ = ("callbacks", "ready")

    def __init__(self, *, ready: bool = False) -> None:
        self.ready = ready
        self.callbacks: list[Callable[[], None]] = []

    def set(self) -> None:
        """Becomes ready."""
        self.ready = True
        if self.callbacks:
            callbacks, self.callbacks = self.callbacks, []
            for callback in callbacks:
                callback()

    def clear(self) -> None:
        """Is not ready any more."""
        self.ready = False


class Pending(Signal):
    """An answer that is under way: ready when it has come, or cannot come any more.

    Attributes:
        what: what was asked, in words, for errors.
        sequence: of the answer, where it has one.
        body: of the answer, where it has one.
        error: why there is no answer.
        on_answer: called with the answer's frame in the moment in which it comes, ahead of the frames behind it.
    """

    __slots__ = ("body", "error", "number", "on_answer", "sequence", "what")

    def __init__(self, what: str, on_answer: Callable[[Frame], None] | None = None) -> None:
        super().__init__()
        self.what = what
        self.on_answer = on_answer
        self.number = 0
        self.sequence = 0
        self.body = b""
        self.error: BrokerError | None = None

    def fail(self, error: BrokerError) -> None:
        """No answer will come."""
        if not self.ready:
            self.error = error
            self.set()

    def result(self) -> int:
        """The answer's sequence.

        Raises:
            BrokerError: why there is none.
        """
        if self.error is not None:
            raise self.error
        return self.sequence
