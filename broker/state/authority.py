"""Whether a session may do what it asks for: one question for every verb, wherever it came in.

TOPIC, PUBLISH   publish or request, once for each topic that a session names; not for each message
SUBSCRIBE        subscribe, or respond; and join, if it is in a queue group
delivery         as for the subscription, once for each topic and subscription
JOIN             join
DECLARE          declare, and publish to the dead-letter topic
QUERY            admin; of one topic any right to it
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from broker.errors import PermissionDenied
from broker.ids import SessionId
from broker.limits import DENIALS_LOGGED_MAX
from broker.security.audit import Audit, AuditEvent, AuditKind, unrecorded
from broker.security.permissions import Permissions, Rights
from broker.security.roles import Verb
from broker.state.records import SessionRecord

log = logging.getLogger(__name__)

Authorize = Callable[[SessionRecord, Verb, str], None]
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

    def deny(self, record: SessionRecord, verb: Verb, target: str) -> None:
        """Records a denial.

        Raises:
            PermissionDenied: always.
        """
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
            PermissionDenied: it may not.
        """
        rights = record.rights
        if topic is not None:
            if any(rights.may(verb, topic) for verb in _ON_TOPICS):
                return
            view = "topics"
        self.authorize(record, Verb.ADMIN, view)

    def __repr__(self) -> str:
        return f"<Authority configured={self.permissions.configured}>"
