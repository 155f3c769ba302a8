"""Queue groups with acknowledgement: who gets which job, and when it comes again."""

from __future__ import annotations

import pytest

from broker.protocol.bodies import MessageBody, decode_body, encode_body
from broker.protocol.frames import Flag, Kind
from tests.state.working import settle, take, talk_with, works


def test_a_job_carries_its_delivery_and_how_often_it_was_delivered() -> None:
    talk = talk_with()
    publisher, worker = talk.peer(), talk.peer()
    number = worker.subscribe("jobs", queue_group="g")
    publisher.publish("jobs", b"x")
    (first,) = worker.delivered(number)
    assert first.flags & Flag.TRACKED
    assert (first.count, first.sequence) == (1, 1)
    settle(worker, number, first, refused=True)
    _, again = worker.delivered(number)
    assert (again.count, again.sequence, bytes(again.payload)) == (2, 1, b"x")
    assert again.stream != first.stream
    settle(worker, number, again)
    assert works(talk) == [(0, 0, 0)]
    assert talk.state.totals().redelivered_messages == 1


def test_plain_subscribers_of_the_topic_get_everything_untracked() -> None:
    talk = talk_with()
    publisher, worker, watcher = talk.peer(), talk.peer(), talk.peer()
    worker.subscribe("jobs", queue_group="g")
    watcher.subscribe("jobs")
    publisher.publish("jobs", b"x")
    publisher.publish_batch("jobs", [b"1", b"2"])
    assert [frame.flags for frame in watcher.delivered()] == [0, Flag.BATCH]
    assert worker.payloads() == [b"x", b"1", b"2"]


def test_a_member_has_at_most_its_queue_messages_unsettled() -> None:
    talk = talk_with()
    publisher, worker = talk.peer(), talk.peer()
    number = worker.subscribe("jobs", queue_group="g", queue_messages=3)
    for index in range(10):
        publisher.publish("jobs", b"%d" % index)
    assert worker.payloads() == [b"0", b"1", b"2"]
    # What was taken and not settled leaves no room either.
    worker.credit(number, 3, 3)
    assert len(worker.payloads()) == 3
    settle(worker, number, worker.delivered(number)[1])
    assert worker.payloads()[3:] == [b"3"]
    assert works(talk) == [(6, 0, 3)]


def test_what_was_settled_and_not_taken_leaves_no_room() -> None:
    talk = talk_with()
    publisher, worker = talk.peer(), talk.peer()
    number = worker.subscribe("jobs", queue_group="g", queue_messages=2)
    for index in range(4):
        publisher.publish("jobs", b"%d" % index)
    settle(worker, number, *worker.delivered(number))
    assert len(worker.payloads()) == 2
    worker.credit(number, 1, 1)
    assert len(worker.payloads()) == 3


def test_a_slow_worker_gets_less() -> None:
    talk = talk_with()
    publisher, slow, fast = talk.peer(), talk.peer(), talk.peer()
    slow.subscribe("jobs", queue_group="g", queue_messages=4)
    number = fast.subscribe("jobs", queue_group="g", queue_messages=4)
    done = 0
    for index in range(40):
        publisher.publish("jobs", b"%d" % index)
        done += len(take(fast, number))
    assert len(slow.payloads()) <= 4
    assert done + len(slow.payloads()) == 40


def test_equally_loaded_members_get_the_same() -> None:
    talk = talk_with()
    publisher = talk.peer()
    members = [talk.peer() for _ in range(3)]
    for member in members:
        member.subscribe("jobs", queue_group="g")
    for index in range(30):
        publisher.publish("jobs", b"%d" % index)
    assert [len(member.payloads()) for member in members] == [10, 10, 10]


def test_jobs_of_before_the_first_worker_wait_for_it() -> None:
    talk = talk_with()
    publisher = talk.peer()
    for index in range(3):
        publisher.publish("jobs", b"%d" % index)
    publisher.publish_batch("jobs", [b"3", b"4"])
    worker = talk.peer()
    number = worker.subscribe("jobs", queue_group="g")
    assert take(worker, number) == [b"0", b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize(
    ("replay", "expected"), [("all", 5), ("latest", 1), (4, 2), (0, 5), (6, 0), (1 << 62, 0)], ids=str
)
def test_a_new_group_can_begin_elsewhere(replay: int | str, expected: int) -> None:
    talk = talk_with()
    publisher = talk.peer()
    for index in range(2):
        publisher.publish("jobs", b"%d" % index)
    publisher.publish_batch("jobs", [b"2", b"3", b"4"])
    worker = talk.peer()
    number = worker.subscribe("jobs", queue_group="g", replay=replay)
    assert take(worker, number) == [b"0", b"1", b"2", b"3", b"4"][5 - expected :]


def test_only_the_first_member_of_a_group_begins_with_the_ring() -> None:
    talk = talk_with()
    publisher, one, two = talk.peer(), talk.peer(), talk.peer()
    publisher.publish("jobs", b"x")
    assert take(one, one.subscribe("jobs", queue_group="g")) == [b"x"]
    assert take(two, two.subscribe("jobs", queue_group="g", replay="all")) == []
    assert take(two, two.subscribe("jobs/#", queue_group="g")) == []
    assert take(two, two.subscribe("jobs", queue_group="another")) == [b"x"]


def test_a_group_outlives_its_members() -> None:
    talk = talk_with()
    publisher, first = talk.peer(), talk.peer()
    number = first.subscribe("jobs", queue_group="g", queue_messages=2)
    for index in range(3):
        publisher.publish("jobs", b"%d" % index)
    settle(first, number, first.delivered(number)[0])
    first.die()
    publisher.publish("jobs", b"3")
    assert works(talk) == [(3, 0, 0)]
    heir = talk.peer()
    number = heir.subscribe("jobs", queue_group="g")
    assert [frame.count for frame in heir.delivered()] == [2, 1, 1]
    assert take(heir, number) == [b"1", b"2", b"3"]


def test_what_a_lost_worker_had_goes_to_the_others_in_order() -> None:
    talk = talk_with()
    publisher, lost, heir = talk.peer(), talk.peer(), talk.peer()
    lost.subscribe("jobs", queue_group="g", queue_messages=5)
    lost.reading = False
    for index in range(8):
        publisher.publish("jobs", b"%d" % index)
    number = heir.subscribe("jobs", queue_group="g")
    lost.die()
    assert sorted(take(heir, number)) == [b"%d" % index for index in range(8)]
    assert works(talk) == [(0, 0, 0)]


def test_unsubscribing_gives_back_what_was_not_settled() -> None:
    talk = talk_with()
    publisher, leaver, heir = talk.peer(), talk.peer(), talk.peer()
    number = leaver.subscribe("jobs", queue_group="g")
    for index in range(3):
        publisher.publish("jobs", b"%d" % index)
    other = heir.subscribe("jobs", queue_group="g")
    held = leaver.delivered(number)
    leaver.put(Kind.UNSUBSCRIBE, number=number, target=1)
    # A settlement may be on its way when the subscription ends.
    settle(leaver, number, held[0])
    assert leaver.is_open
    assert take(heir, other) == [b"0", b"1", b"2"]


def test_two_members_of_one_dying_session_leave_everything_to_the_third() -> None:
    talk = talk_with()
    publisher, twice, heir = talk.peer(), talk.peer(), talk.peer()
    for _ in range(2):
        twice.subscribe("jobs", queue_group="g", queue_messages=3)
    twice.reading = False
    for index in range(8):
        publisher.publish("jobs", b"%d" % index)
    twice.die()
    number = heir.subscribe("jobs", queue_group="g")
    assert [frame.count for frame in heir.delivered()] == [2] * 6 + [1] * 2
    assert take(heir, number) == [b"%d" % index for index in range(8)]


def test_a_lease_that_runs_out_gives_the_job_to_another_one() -> None:
    talk = talk_with(lease_s=2.0)
    publisher, stuck, heir = talk.peer(), talk.peer(), talk.peer()
    stuck_number = stuck.subscribe("jobs", queue_group="g", queue_messages=1)
    publisher.publish("jobs", b"x")
    heir.subscribe("jobs", queue_group="g")
    talk.tick(1.9)
    assert heir.payloads() == []
    talk.tick(0.2)
    assert heir.payloads() == [b"x"]
    # Late, and done all the same: the heir's job is over too.
    settle(stuck, stuck_number, stuck.delivered()[0])
    assert works(talk) == [(0, 0, 0)]
    talk.tick(5.0)
    assert len(heir.payloads()) == 1


def test_who_has_stopped_does_not_get_its_jobs_again_while_somebody_else_has_room() -> None:
    talk = talk_with(lease_s=2.0, max_deliveries=2)
    publisher, worker, stuck = talk.peer(), talk.peer(), talk.peer()
    number = worker.subscribe("jobs", queue_group="g")
    stuck.subscribe("jobs", queue_group="g")
    for payload in (b"0", b"1"):
        publisher.publish("jobs", payload)
    assert (take(worker, number), stuck.payloads()) == ([b"0"], [b"1"])
    # Both have room and no job from here on, and the stopped one has waited longer for one.
    talk.tick(2.1)
    assert stuck.payloads() == [b"1"]
    assert take(worker, number) == [b"1"]
    assert works(talk) == [(0, 0, 0)]


def test_a_member_alone_gets_its_job_again_when_its_lease_has_run_out() -> None:
    talk = talk_with(lease_s=2.0)
    publisher, worker = talk.peer(), talk.peer()
    number = worker.subscribe("jobs", queue_group="g")
    publisher.publish("jobs", b"x")
    talk.tick(2.1)
    assert worker.payloads() == [b"x", b"x"]
    settle(worker, number, worker.delivered(number)[1])
    assert works(talk) == [(0, 0, 0)]


def test_a_refused_job_comes_back_after_its_delay() -> None:
    talk = talk_with()
    publisher, worker = talk.peer(), talk.peer()
    number = worker.subscribe("jobs", queue_group="g")
    publisher.publish("jobs", b"x")
    settle(worker, number, worker.delivered(number)[0], refused=True, delay_s=3.0)
    talk.tick(2.9)
    assert len(worker.payloads()) == 1
    talk.tick(0.2)
    assert worker.payloads() == [b"x", b"x"]


def test_a_job_that_fails_too_often_becomes_a_dead_letter_with_its_story() -> None:
    talk = talk_with(max_deliveries=2)
    publisher, worker, mourner = talk.peer("publisher"), talk.peer(), talk.peer()
    mourner.subscribe("$dead/jobs")
    number = worker.subscribe("jobs", queue_group="g")
    body = encode_body(MessageBody({"step": "7"}))
    publisher.publish("jobs", b"x", body=body, time_ns=42)
    for _ in range(2):
        settle(worker, number, worker.delivered(number)[-1], refused=True)
    assert len(worker.payloads()) == 2
    (letter,) = mourner.delivered()
    assert (bytes(letter.payload), letter.content, letter.time_ns, letter.sequence, letter.flags) == (b"x", 1, 42, 1, 0)
    assert mourner.names()[letter.number].sender == "publisher"
    assert decode_body(letter.body, MessageBody).headers == {
        "step": "7",
        "dead-letter-topic": "jobs",
        "dead-letter-sequence": "1",
        "dead-letter-reason": "a worker refused it",
        "dead-letter-deliveries": "2",
    }
    totals = talk.state.totals()
    assert (totals.dead_messages, totals.redelivered_messages, totals.published_messages) == (1, 1, 1)
    assert works(talk) == [(0, 0, 0)]


def test_the_dead_letter_topic_can_be_chosen_and_be_a_work_queue_itself() -> None:
    talk = talk_with(max_deliveries=1, dead_letter="graveyard")
    publisher, worker, digger = talk.peer(), talk.peer(), talk.peer()
    number = worker.subscribe("jobs", queue_group="g")
    grave = digger.subscribe("graveyard", queue_group="diggers")
    publisher.publish("jobs", b"x")
    settle(worker, number, worker.delivered(number)[0], refused=True)
    assert take(digger, grave) == [b"x"]


def test_dead_letters_do_not_die_again() -> None:
    talk = talk_with(max_deliveries=1)
    publisher, worker = talk.peer(), talk.peer()
    number = worker.subscribe("jobs", queue_group="g")
    grave = worker.subscribe("$dead/#", queue_group="g")
    publisher.publish("jobs", b"x")
    settle(worker, number, worker.delivered(number)[0], refused=True)
    for _ in range(5):
        settle(worker, grave, worker.delivered(grave)[-1], refused=True)
    assert len(worker.payloads(grave)) == 6


def test_a_body_that_cannot_be_read_is_buried_as_it_is() -> None:
    talk = talk_with(max_deliveries=1)
    publisher, worker, mourner = talk.peer(), talk.peer(), talk.peer()
    mourner.subscribe("$dead/#")
    number = worker.subscribe("jobs", queue_group="g")
    publisher.publish("jobs", b"x", body=b"\xc1rubbish")
    settle(worker, number, worker.delivered(number)[0], refused=True)
    assert [frame.body for frame in mourner.delivered()] == [b"\xc1rubbish"]


def test_a_worker_that_is_lost_again_and_again_kills_only_the_job_it_was_at() -> None:
    talk = talk_with(max_deliveries=3)
    publisher, mourner = talk.peer(), talk.peer()
    mourner.subscribe("$dead/#")
    for index in range(10):
        publisher.publish("jobs", b"%d" % index)
    for _ in range(3):
        worker = talk.peer()
        worker.subscribe("jobs", queue_group="g")
        worker.die()
    assert mourner.payloads() == [b"0"]
    heir = talk.peer()
    assert take(heir, heir.subscribe("jobs", queue_group="g")) == [b"%d" % index for index in range(1, 10)]


def test_priorities_go_first() -> None:
    talk = talk_with()
    publisher, worker = talk.peer(), talk.peer()
    number = worker.subscribe("jobs", queue_group="g", queue_messages=1)
    publisher.publish("jobs", b"at work")
    for priority in (0, 3, 9, 3, 1):
        publisher.publish("jobs", b"%d" % priority, count=priority)
    assert take(worker, number) == [b"at work", b"9", b"3", b"3", b"1", b"0"]


def test_a_priority_over_the_limit_is_a_fault() -> None:
    talk = talk_with()
    publisher = talk.peer()
    publisher.publish("jobs", b"x", count=10)
    assert "message with priority 10: priorities are 0 to 9" in str(publisher.session.failure)


def test_a_batch_of_one_is_opened_as_well() -> None:
    talk = talk_with()
    publisher, worker = talk.peer(), talk.peer()
    worker.subscribe("jobs", queue_group="g")
    publisher.publish_batch("jobs", [b"only"])
    (frame,) = worker.delivered()
    assert (bytes(frame.payload), frame.flags) == (b"only", Flag.TRACKED)


def test_a_wildcard_member_works_on_all_its_topics_in_turns() -> None:
    talk = talk_with()
    publisher, worker = talk.peer(), talk.peer()
    number = worker.subscribe("jobs/+", queue_group="g", queue_messages=1)
    for topic in ("a", "b", "c"):
        for index in range(3):
            publisher.publish(f"jobs/{topic}", f"{topic}{index}".encode())
    order = take(worker, number)
    assert sorted(order) == [f"{topic}{index}".encode() for topic in "abc" for index in range(3)]
    assert {name[:1] for name in order[1:4]} == {b"a", b"b", b"c"}
    assert [works(talk, f"jobs/{topic}") for topic in "abc"] == [[(0, 0, 0)]] * 3


def test_members_with_different_filters_share_a_topics_jobs() -> None:
    talk = talk_with()
    publisher, exact, wild = talk.peer(), talk.peer(), talk.peer()
    numbers = exact.subscribe("jobs/a", queue_group="g"), wild.subscribe("jobs/#", queue_group="g")
    for index in range(10):
        publisher.publish("jobs/a", b"%d" % index)
    assert len(exact.payloads()) == len(wild.payloads()) == 5
    wild.die()
    assert len(take(exact, numbers[0])) == 10
