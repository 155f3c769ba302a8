"""What happens to sessions that are open when it changes what they may do.

    topics that it has named   refused from the next message on, or not any more; a large one under way goes on
    subscriptions              end, with PermissionDenied at the subscriber; or lose what waits and is denied now
    groups, another tenant     the session is closed: the members of a group that are left go on without it

What was sent before is with the subscriber, and nothing brings it back; nor shared memory that it has mapped, of
which it hears no more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from broker.errors import PermissionDenied, ProtocolError
from broker.protocol.codes import Code
from broker.protocol.frames import Flag
from broker.security.roles import Verb
from broker.security.rules import Rules
from broker.state.delivery import Subscription
from broker.state.enlisting import enlist
from broker.state.topics import Router

if TYPE_CHECKING:
    from broker.state.authority import Authority
    from broker.state.records import SessionRecord


def revoke(record: SessionRecord, authority: Authority, flush: Callable[[SessionRecord], None]) -> None:
    """A session may do from now on what its identity allows it by the permissions that hold now.

    Args:
        record: the session, which has said hello.
        authority: knows the permissions.
        flush: called with a session that has something to send.
    """
    tenant, rights = record.tenant, authority.rights(record)
    if rights is record.rights:
        return
    # What is on lines was published, and read, by what held before.
    tenant.lines.end_all()
    record.rights = rights
    try:
        if tenant.name != record.identity.tenant:
            authority.authorize(record, Verb.ADMIN, f"tenants/{tenant.name}")
        for group in record.groups:
            authority.authorize(record, Verb.JOIN, group)
    except PermissionDenied as error:
        # At once: nothing that waits, or comes, leaves after this.
        record.session.fail(ProtocolError(str(error), Code.DENIED))
        flush(record)
        return
    if record.shares is not None:
        record.shares.reads = record.rights.reads_all
    tenant.publishing.follow_rights(record)
    tenant.subscribing.follow_rights(record)


def restrict(router: Router, subscription: Subscription, rules: Rules | None) -> None:
    """A subscription may have other topics than before, of those that its filter matches.

    As a member of a queue group it gives back its jobs, and gets those again that it may still have; what else waits
    for it that it may not have goes to another member that may.
    """
    queue = subscription.queue
    waiting = queue.drain()
    router.works.resign(subscription)
    subscription.rules = rules
    router.look_again()
    for message in waiting:
        # A job has gone back to its queue.
        if not message.flags & Flag.TRACKED:
            if rules is None or rules.allows(message.topic):
                queue.offer(message)
            else:
                group = subscription.queue_group
                member = router.requeue(message, group) if group else None
                if member is None:
                    queue.lose(message, message.count)
                if message.flags & Flag.REQUEST:
                    router.on_moved(message, subscription, member)
        message.release()
    for source in subscription.sources.values():
        if source.message is not None and rules is not None and not rules.allows(source.message.topic):
            source.give_up()
    if queue.dropped != subscription.notice.told:
        subscription.tell_dropped()
    if subscription.queue_group:
        enlist(router, subscription, None)
