"""Permissions on the wire: every verb is refused where nothing allows it, and nothing is there afterwards."""

from __future__ import annotations

import pytest

from broker.errors import PermissionDenied
from broker.limits import CHUNK_BYTES
from broker.protocol.bodies import Declare, Failure, Join, Settle, Subscribe, decode_body
from broker.protocol.codes import Code
from broker.protocol.frames import Flag, Kind, Lane
from broker.protocol.pressure import Query
from broker.security.audit import AuditEvent, AuditKind
from broker.security.identity import Identity
from broker.security.permissions import Permissions
from broker.security.roles import READY_MADE, Role, Verb
from broker.security.rules import Rules
from tests.state.harness import Peer, Talk
from tests.state.sharers import Sharer

ADMIN = Identity("ada", ("admin",), proof="token")


def permissions(**roles: Role) -> Permissions:
    return Permissions(configured=True, roles={**READY_MADE, **roles})


def role(allow: dict[str, tuple[str, ...]], deny: dict[str, tuple[str, ...]] | None = None) -> Role:
    def of(filters: dict[str, tuple[str, ...]]) -> dict[Verb, tuple[str, ...]]:
        return {Verb(verb): listed for verb, listed in filters.items()}

    return Role(of(allow), of(deny or {}))


def world(allow: dict[str, tuple[str, ...]], deny: dict[str, tuple[str, ...]] | None = None) -> tuple[Talk, Peer, Peer]:
    """A broker, somebody with some rights, and an admin."""
    talk = Talk(permissions=permissions(some=role(allow, deny)), ring_messages=100)
    return talk, talk.peer("somebody", identity=Identity("somebody", ("some",))), talk.peer("ada", identity=ADMIN)


def denials(peer: Peer, reference: int | None = None) -> list[Failure]:
    frames = [frame for frame in peer.all_of(Kind.ERROR) if reference in (None, frame.target)]
    failures = [decode_body(frame.body, Failure) for frame in frames]
    assert all(failure.code == Code.DENIED for failure in failures), failures
    return failures


def test_what_one_may_not_publish_goes_nowhere_and_its_topic_does_not_come_into_being() -> None:
    talk, some, ada = world({"publish": ("mine/#",)})
    number = ada.subscribe("#")
    some.publish("other", b"x")
    some.publish("mine/a", b"y")
    assert ada.payloads(number) == [b"y"]
    assert "other" not in talk.state.router.topics
    assert some.is_open
    (failure,) = denials(some)
    assert "publish 'other': not allowed to 'somebody' (roles: some); it may publish mine/#" in failure.reason
    assert some.all_of(Kind.ERROR)[0].number == some.topic("other")


def test_a_refused_message_that_waits_for_an_answer_gets_one_each_time() -> None:
    _, some, _ = world({})
    for reference in (7, 8):
        some.publish("other", b"x", Flag.ACKNOWLEDGE, target=reference)
    assert [len(denials(some, reference)) for reference in (7, 8)] == [1, 1]
    for _ in range(3):
        some.publish("other", b"x")
    assert len(denials(some, 0)) == 1, "of others the publisher is told once, or a fast one would be told without end"


def test_a_large_message_and_a_batch_are_refused_as_well_and_credit_comes_back() -> None:
    talk, some, ada = world({"publish": ("mine",)})
    number = ada.subscribe("#")
    some.publish_large("other", b"x" * (3 * CHUNK_BYTES))
    some.publish_batch("other", [b"a", b"b"])
    for _ in range(talk.state.publishing.window_messages):
        some.publish("other", b"x")
    assert ada.delivered(number) == []
    assert some.is_open
    assert some.topic_credit("other")[0] >= talk.state.publishing.window_messages // 2
    some.publish("mine", b"y")
    assert ada.payloads(number) == [b"y"]


def test_a_control_message_is_refused_as_well() -> None:
    _, some, ada = world({})
    number = ada.subscribe("#")
    some.publish("other", b"x", lane=Lane.CONTROL)
    assert ada.delivered(number) == []
    assert len(denials(some)) == 1


@pytest.mark.parametrize("topic_filter", ["other", "#", "+/a", "mine/+/+", "$sys/#", "mine"])
def test_one_may_not_subscribe_to_more_than_is_allowed(topic_filter: str) -> None:
    talk, some, ada = world({"subscribe": ("mine/+",)})
    some.put(Kind.SUBSCRIBE, body=Subscribe(topic_filter), number=1, target=5)
    assert len(denials(some, 5)) == 1
    ada.publish("other", b"x")
    ada.publish("mine/b/c", b"x")
    assert some.delivered() == []
    assert len(some.record.subscriptions) == 1
    assert talk.state.router.routes(talk.state.router.topic("other")).subscriptions() == []


def test_what_is_denied_within_a_filter_is_not_delivered_nor_replayed() -> None:
    talk, some, ada = world({"subscribe": ("a/#",)}, {"subscribe": ("a/secret/#",)})
    ada.publish("a/secret/x", b"before")
    number = some.subscribe("a/#", replay="all")
    ada.publish("a/secret/y", b"s")
    ada.publish_batch("a/secret/y", [b"s", b"s"])
    ada.publish_large("a/secret/y", b"s" * CHUNK_BYTES)
    ada.publish("a/b", b"b")
    assert some.payloads(number) == [b"b"]
    assert [topic.name for topic in some.names().values()] == ["a/b"]
    resumed = some.subscribe("a/#", resume=1)
    assert [frame.sequence for frame in some.delivered(resumed)] == [1]


def test_a_subscription_of_which_all_is_denied_is_refused() -> None:
    _, some, _ = world({"subscribe": ("#",)}, {"subscribe": ("a/#",)})
    some.put(Kind.SUBSCRIBE, body=Subscribe("a/+"), number=1, target=5)
    assert "but not a/#" in denials(some, 5)[0].reason
    some.subscribe("+/b")


def test_requests_and_messages_are_allowed_each_for_itself() -> None:
    _, some, ada = world({"request": ("ask",), "publish": ("tell",)})
    ada.subscribe("ask", responder=True)
    told = ada.subscribe("tell", responder=True)
    some.publish("ask", b"q", Flag.REQUEST, target=3, sequence=1)
    some.publish("ask", b"m", Flag.ACKNOWLEDGE, target=4)
    some.publish("tell", b"q", Flag.REQUEST, target=5, sequence=2)
    some.publish("tell", b"m", Flag.ACKNOWLEDGE, target=6)
    assert denials(some, 3) == []
    assert len(denials(some, 4)) == 1
    assert len(denials(some, 5)) == 1
    assert denials(some, 6) == []
    assert ada.payloads() == [b"q", b"m"]
    assert ada.payloads(told) == [b"m"]


def test_a_responder_is_refused_and_nobody_is_asked() -> None:
    _, some, ada = world({"subscribe": ("ask",)})
    some.put(Kind.SUBSCRIBE, body=Subscribe("ask", responder=True), number=1, target=5)
    assert len(denials(some, 5)) == 1
    ada.publish("ask", b"q", Flag.REQUEST, target=3, sequence=1)
    assert [failure.code for failure in ada.failures()] == [Code.NO_RESPONDERS]


def test_replies_are_for_those_who_may_respond_to_something() -> None:
    _, some, ada = world({"publish": ("#",)})
    some.publish(f"$inbox/{ada.record.id}", b"forged", Flag.LAST, sequence=1)
    assert ada.delivered(0) == []
    assert len(denials(some)) == 1


def test_a_group_is_refused_and_nobody_hears_of_it() -> None:
    talk, some, ada = world({"join": ("mine",)})
    heard = ada.subscribe("$sys/groups/#")
    some.put(Kind.JOIN, body=Join("dp", 1), target=5)
    assert len(denials(some, 5)) == 1
    assert talk.state.own.groups.by_number == {}
    assert ada.delivered(heard) == []
    some.put(Kind.JOIN, body=Join("mine", 1), target=6)
    assert [frame.target for frame in some.all_of(Kind.JOINED)] == [6]


def test_a_queue_group_needs_the_right_to_join_it() -> None:
    _, some, ada = world({"subscribe": ("jobs",), "join": ("workers",)})
    some.put(Kind.SUBSCRIBE, body=Subscribe("jobs", queue_group="others"), number=1, target=5)
    assert len(denials(some, 5)) == 1
    number = some.subscribe("jobs", queue_group="workers")
    ada.publish("jobs", b"x")
    assert some.payloads(number) == [b"x"]


def test_jobs_go_only_to_members_that_may_have_them() -> None:
    allow = {"subscribe": ("jobs/#",), "join": ("workers",), "declare": ("#",)}
    talk, some, ada = world(allow, {"subscribe": ("jobs/secret",)})
    ada.put(Kind.DECLARE, body=Declare("jobs/#", acknowledge=True), target=9)
    number = some.subscribe("jobs/#", queue_group="workers")
    for _ in range(3):
        ada.publish("jobs/secret", b"s")
        ada.publish("jobs/open", b"o")
    assert some.payloads(number) == [b"o"] * 3
    # Somebody who may have all has the same filter, and is another crew.
    other = talk.peer("other", identity=ADMIN)
    theirs = other.subscribe("jobs/#", queue_group="workers")
    assert sorted(other.payloads(theirs)) == [b"s"] * 0 or set(other.payloads(theirs)) == {b"s"}
    ada.publish("jobs/secret", b"s")
    assert b"s" in other.payloads(theirs)
    assert b"s" not in some.payloads(number)


def test_a_policy_is_refused_where_it_reaches_further_than_allowed() -> None:
    talk, some, _ = world({"declare": ("mine/#",), "publish": ("mine/#",)}, {"declare": ("mine/fixed",)})
    for reference, wanted in enumerate(("#", "mine/#", "mine/fixed", "other"), start=1):
        some.put(Kind.DECLARE, body=Declare(wanted, retain=True), target=reference)
        assert len(denials(some, reference)) == 1
    assert len(talk.state.router.policies) == 0
    some.put(Kind.DECLARE, body=Declare("mine/a", retain=True), target=9)
    assert [frame.target for frame in some.all_of(Kind.DONE)] == [9]


def test_dead_letters_go_only_where_the_declarer_may_publish() -> None:
    _, some, _ = world({"declare": ("mine",), "publish": ("box",), "subscribe": ("mine",)})
    some.put(Kind.DECLARE, body=Declare("mine", acknowledge=True, dead_letter="elsewhere"), target=1)
    some.put(Kind.DECLARE, body=Declare("mine", acknowledge=True, dead_letter="box"), target=2)
    assert len(denials(some, 1)) == 1
    assert denials(some, 2) == []


def test_dead_letters_are_read_by_those_who_may() -> None:
    _, some, ada = world({"subscribe": ("#",), "join": ("#",), "declare": ("#",)})
    some.put(Kind.SUBSCRIBE, body=Subscribe("$dead/#"), number=1, target=5)
    assert len(denials(some, 5)) == 1
    dead = ada.subscribe("$dead/#")
    ada.put(Kind.DECLARE, body=Declare("jobs", acknowledge=True, max_deliveries=1), target=9)
    some.subscribe("jobs", queue_group="g")
    ada.publish("jobs", b"x")
    (job,) = some.delivered()
    some.put(Kind.SETTLE, body=Settle([job.stream], refused=True), number=job.target)
    assert ada.payloads(dead) == [b"x"]
    assert len(some.delivered()) == 1


@pytest.mark.parametrize("query", [Query(view="sessions"), Query(topic="other"), Query(view="topics")])
def test_what_the_broker_knows_is_shown_to_those_who_may_see_it(query: Query) -> None:
    _, some, _ = world({"subscribe": ("mine",), "admin": ("groups",)})
    some.put(Kind.QUERY, body=query, target=5)
    assert len(denials(some, 5)) == 1


def test_whoever_has_a_right_to_a_topic_may_ask_how_it_fares() -> None:
    for verb in ("publish", "subscribe", "request", "respond"):
        _, some, _ = world({verb: ("mine",)})
        some.put(Kind.QUERY, body=Query(topic="mine"), target=5)
        assert [frame.target for frame in some.all_of(Kind.DONE)] == [5]


def test_a_subscription_that_comes_back_and_may_not_be_ends() -> None:
    _, some, _ = world({})
    # Nobody waits for an answer to it, as after a reconnect.
    some.put(Kind.SUBSCRIBE, body=Subscribe("other", resume=3), number=4)
    (ended,) = some.all_of(Kind.UNSUBSCRIBE)
    assert ended.number == 4
    assert decode_body(ended.body, Failure).code == Code.DENIED


def test_with_no_rules_everything_goes_as_before() -> None:
    talk = Talk()
    some = talk.peer("somebody")
    number = some.subscribe("#")
    some.publish("a", b"x")
    assert some.payloads(number) == [b"x"]
    assert not some.record.rights.limited


def test_who_may_not_read_all_topics_gets_no_memory_of_others_in_which_they_all_lie() -> None:
    payload = b"x" * 20_000
    some = role({"subscribe": ("#",)}, {"subscribe": ("secret",)})
    talk = Talk(permissions=permissions(some=some), ring_messages=0)
    publisher = Sharer(talk, "publisher", arena=True, identity=ADMIN)
    reader = Sharer(talk, "reader", identity=Identity("reader", ("some",)))
    trusted = Sharer(talk, "trusted", identity=Identity("trusted", ("trainer",)))
    reader.peer.subscribe("a")
    trusted.peer.subscribe("a")
    publisher.publish("a", payload)
    assert reader.peer.all_of(Kind.ARENA) == []
    assert reader.peer.large() == [payload]
    trusted.read(1)
    assert len(trusted.leases()) == 1
    # It may well lend its own.
    assert reader.peer.welcome is not None
    assert reader.peer.welcome.shared


def test_memory_is_shared_no_more_with_whom_may_not_read_all_any_more() -> None:
    talk = Talk(permissions=permissions(some=role({"subscribe": ("#",)})), ring_messages=0)
    publisher = Sharer(talk, "publisher", arena=True, identity=ADMIN)
    reader = Sharer(talk, "reader", identity=Identity("reader", ("some",)))
    reader.peer.subscribe("a")
    publisher.publish("a", b"x" * 20_000)
    reader.read(1)
    talk.state.replace_permissions(permissions(some=role({"subscribe": ("a",)})))
    talk.settle()
    publisher.publish("a", b"y" * 20_000)
    assert len(reader.leases()) == 1
    assert reader.peer.large() == [b"y" * 20_000]


def test_denials_are_logged_but_fill_no_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.state.authority.DENIALS_LOGGED_MAX", 3)
    caplog.set_level("INFO")
    talk, some, _ = world({})
    for reference in range(1, 9):
        some.publish("other", b"x", Flag.ACKNOWLEDGE, target=reference)
    lines = [record.message for record in caplog.records if "permission.denied" in record.message]
    assert len(lines) == 3
    assert "verb=publish target='other'" in lines[0]
    assert lines[-1].endswith("more=0")
    some.die()
    assert talk.state.authority._denials == {}


def test_denials_are_recorded_with_who_and_what() -> None:
    events: list[AuditEvent] = []
    talk = Talk(permissions=permissions(some=role({})), audit=events.append)
    identity = Identity("somebody", ("some",), proof="token")
    talk.peer("calls itself so", identity=identity).publish("other", b"x")
    (event,) = [event for event in events if event.kind is AuditKind.DENIED]
    assert (event.identity, event.name, event.action, event.target) == (
        identity, "somebody/calls itself so", "publish", "other",
    )  # fmt: skip


def test_a_dead_letter_topic_is_for_those_who_may_read_all_that_can_die_there() -> None:
    allow = {"declare": ("jobs/#",), "publish": ("open",), "subscribe": ("jobs/#",)}
    _, some, _ = world(allow, {"subscribe": ("jobs/secret",)})
    some.put(Kind.DECLARE, body=Declare("jobs/#", acknowledge=True, dead_letter="open"), target=1)
    some.put(Kind.DECLARE, body=Declare("jobs/secret", acknowledge=True, dead_letter="open"), target=2)
    some.put(Kind.DECLARE, body=Declare("jobs/a", acknowledge=True, dead_letter="open"), target=3)
    some.put(Kind.DECLARE, body=Declare("jobs/#", acknowledge=True), target=4)
    assert ["subscribe" in failure.reason for failure in denials(some)] == [True, True]
    assert [frame.target for frame in some.all_of(Kind.DONE)] == [3, 4]


def test_what_is_too_long_to_be_a_name_is_neither_remembered_nor_told_whole() -> None:
    events: list[AuditEvent] = []
    talk = Talk(permissions=permissions(some=role({"subscribe": ("mine",)})), audit=events.append)
    some = talk.peer("somebody", identity=Identity("somebody", ("some",)))
    long = "x" * 200_000
    for reference, query in enumerate((Query(topic=long), Query(view=long)), start=1):
        some.put(Kind.QUERY, body=query, target=reference)
    some.put(Kind.JOIN, body=Join(long, 1), target=3)
    failures = some.failures()
    assert [failure.code for failure in failures] == [Code.INVALID] * 3
    assert all(len(failure.reason) < 1000 for failure in failures)
    assert sum(len(event.target) for event in events) < 1000
    assert some.is_open


def test_rules_remember_no_target_that_is_too_long() -> None:
    rules = Rules(("#",), ("secret",))
    assert rules.allows("x" * 100_000)
    assert rules.allows("short")
    assert list(rules._known) == ["short"]


def test_a_denial_of_something_long_is_cut_short() -> None:
    events: list[AuditEvent] = []
    talk = Talk(permissions=permissions(some=role({})), audit=events.append)
    some = talk.peer("somebody", identity=Identity("somebody", ("some",)))
    with pytest.raises(PermissionDenied) as denied:
        talk.state.authority.authorize(some.record, Verb.JOIN, "x" * 100_000)
    assert len(str(denied.value)) < 300
    assert len(events[-1].target) < 100
