"""Whether a session may do what it asks for: one question for every verb, wherever it came in.

TOPIC, PUBLISH   publish or request, once for each topic that a session names; not for each message
SUBSCRIBE        subscribe, or respond; and join, if it is in a queue group
delivery         as for the subscription, once for each topic and subscription
JOIN             join
DECLARE          declare; with a dead-letter topic also publish there, and subscribe to all that the filter matches
QUERY            admin; of one topic any right to it
"""

from __future__ import annotations

import logging

from broker.errors import InvalidValue, PermissionDenied
from broker.ids import SessionId
from broker.limits import DENIALS_LOGGED_MAX, NAME_BYTES_MAX, TOPIC_BYTES_MAX
from broker.security.audit import Audit, AuditEvent, AuditKind, unrecorded
from broker.security.permissions import Permissions, Rights
from broker.security.roles import Verb
from broker.state.records import SessionRecord
from broker.topics.names import check_topic

log = logging.getLogger(__name__)

_SHOWN_CHARACTERS = 64
"""Of a target that is too long to be one."""
_ON_TOPICS = (Verb.PUBLISH, Verb.REQUEST, Verb.SUBSCRIBE, Verb.RESPOND)


class Authority:
    """What holds at the moment.

    Attributes:
        permissions: of all.
    """

    def __init__(self, permissions: Permissions, audit: Audit = unrecorded) -> None:
        self.permissions = permissions
        self._audit = audit
        self._denials: dict[SessionId, int] = {}

    def rights(self, record: SessionRecord) -> Rights:
        """What a session may do from now on."""
        return self.permissions.of(record.identity)

    def authorize(self, record: SessionRecord, verb: Verb, target: str) -> None:
        """Refuses what a session may not do; see Rights.may for what the target is.

        Raises:
            PermissionDenied: it may not.
        """
        rights = record.rights
        if rights.limited and not rights.may(verb, target):
            self.deny(record, verb, target)

    def authorize_reading_all(self, record: SessionRecord, topic_filter: str) -> None:
        """Refuses whoever may not subscribe to each topic that a checked filter matches.

        Raises:
            PermissionDenied: there may be one that is denied.
        """
        rules = record.rights.rules(Verb.SUBSCRIBE)
        if rules is not None and not rules.allows_all(topic_filter):
            self.deny(record, Verb.SUBSCRIBE, topic_filter)

    def deny(self, record: SessionRecord, verb: Verb, target: str) -> None:
        """Records a denial.

        Raises:
            PermissionDenied: always.
        """
        if len(target) > TOPIC_BYTES_MAX:
            target = target[:_SHOWN_CHARACTERS] + "..."
        self._record(record, verb, target)
        raise PermissionDenied(record.rights.refusal(verb, target))

    def _record(self, record: SessionRecord, verb: Verb, target: str) -> None:
        self._audit(
            AuditEvent(
                AuditKind.DENIED, record.identity, record.peer, record.id, record.name, str(verb), target,
                record.rights.who,
            )
        )  # fmt: skip
        count = self._denials[record.id] = self._denials.get(record.id, 0) + 1
        if count <= DENIALS_LOGGED_MAX:
            # The last one says 0: of this session no more are told.
            log.info(
                "permission.denied session=%d name=%r peer=%s who=%s verb=%s target=%r more=%d",
                record.id, record.name, record.peer, record.rights.who, verb, target, DENIALS_LOGGED_MAX - count,
            )  # fmt: skip

    def forget(self, session: SessionId) -> None:
        """A session is over."""
        self._denials.pop(session, None)

    def authorize_question(self, record: SessionRecord, topic: str | None, view: str) -> None:
        """Refuses a question to which a session may not have the answer.

        Raises:
            InvalidValue: it is no topic, or too long to be a view.
            PermissionDenied: it may not.
        """
        rights = record.rights
        if len(view) > NAME_BYTES_MAX:
            raise InvalidValue("view", view[:16], f"has {len(view)} characters; the limit is {NAME_BYTES_MAX}")
        if topic is not None:
            check_topic(topic, reserved=True)
            if any(rights.may(verb, topic) for verb in _ON_TOPICS):
                return
            view = "topics"
        self.authorize(record, Verb.ADMIN, view)

    def __repr__(self) -> str:
        return f"<Authority configured={self.permissions.configured}>"
