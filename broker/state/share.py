"""One of several workers keeps to its share of the topics and groups (docs/wire.md, section 22).

A client that speaks the wire and has never heard of workers would publish into the void: whoever wants to hear it is at
another worker. So what is said about a topic that is not this worker's is refused, with the worker that has it. The
session that publishes there ends, as one does that names a topic which cannot be; all else is answered with ERROR.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from broker.errors import InvalidValue, ProtocolError
from broker.protocol.bodies import Declare, Failure, Join, Subscribe, Topic, decode_body
from broker.protocol.codes import Code, failure_of
from broker.protocol.frames import Frame, Kind
from broker.state.records import SessionRecord
from broker.state.settings import Settings
from broker.state.topics import INBOX
from broker.topics.owners import owners

Handler = Callable[[SessionRecord, Frame, int], None]
Answer = Callable[[SessionRecord, int, Failure], None]


def _topic_of(frame: Frame) -> str:
    return decode_body(frame.body, Topic).name


def _filter_of(frame: Frame) -> str:
    return decode_body(frame.body, Subscribe).filter


def _declared(frame: Frame) -> str:
    return decode_body(frame.body, Declare).filter


def _group_of(frame: Frame) -> str:
    return decode_body(frame.body, Join).group


_ABOUT: Mapping[int, tuple[str, Callable[[Frame], str]]] = {
    Kind.TOPIC: ("topic", _topic_of),
    Kind.SUBSCRIBE: ("topic", _filter_of),
    Kind.DECLARE: ("topic", _declared),
    Kind.JOIN: ("group", _group_of),
}


def kept_to_share(handlers: Mapping[int, Handler], settings: Settings, answer: Answer) -> dict[int, Handler]:
    """Handlers that refuse what is another worker's; the same ones, where the broker is one.

    Args:
        handlers: by the kinds of frames.
        settings: say which worker this is, and of how many.
        answer: answers a session's request, by its reference, with a failure.
    """
    if settings.workers <= 1:
        return dict(handlers)

    def keeping(kind: int, handler: Handler) -> Handler:
        what, name_of = _ABOUT[kind]

        def handled(record: SessionRecord, frame: Frame, now_ns: int) -> None:
            name = name_of(frame)
            # An inbox is its session's, wherever that is.
            if name.startswith(INBOX) or settings.worker in owners(name, settings.workers):
                handler(record, frame, now_ns)
                return
            error = _elsewhere(what, name, settings)
            if not frame.target:
                raise ProtocolError(str(error), Code.INVALID)
            answer(record, frame.target, failure_of(error))

        return handled

    return {kind: keeping(kind, handler) if kind in _ABOUT else handler for kind, handler in handlers.items()}


def _elsewhere(what: str, name: str, settings: Settings) -> InvalidValue:
    count = settings.workers
    return InvalidValue(
        what, name, f"is worker {owners(name, count)[0]}'s, and this is worker {settings.worker} of {count}: it takes "
        "a session with that one (docs/wire.md, section 22), which the client library makes by itself",
    )  # fmt: skip
