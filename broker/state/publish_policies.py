"""What publishers are told of the policies of their topics (docs/wire.md section 4.1)."""

from __future__ import annotations

from broker.protocol.bodies import PublishPolicy
from broker.topics.policy import TopicPolicy


def for_publishers(policy: TopicPolicy) -> PublishPolicy:
    """What publishers have to know of a policy: where it differs from what they take for granted."""
    plain = TopicPolicy()
    return PublishPolicy(
        policy.batch_bytes if policy.batch_bytes != plain.batch_bytes else None,
        policy.batch_window_us if policy.batch_window_us != plain.batch_window_us else None,
        policy.lane if policy.lane != plain.lane else None,
        policy.max_message_bytes,
    )
