"""What a subscription asks for when it comes back."""

from __future__ import annotations

from broker.protocol.bodies import Resume, Subscribe, decode_body
from broker.protocol.frames import Frame, Kind
from clients.reading.seen import Seen
from tests.state.harness import Talk


def asked(seen: Seen) -> tuple[int | None, dict[str, tuple[int, int, int]]]:
    """The moment and the topics that it names."""
    *resumes, subscribe = seen.frames(1, 2, again=True)
    topics: dict[str, tuple[int, int, int]] = {}
    for frame in resumes:
        assert frame.kind == Kind.RESUME
        topics |= decode_body(frame.body, Resume).seen
    return decode_body(subscribe.body, Subscribe).resume, topics


def saw(seen: Seen, topic: str, sequence: int) -> None:
    seen.saw(topic, 1, sequence)


def test_it_names_the_moment_at_which_it_first_began_in_every_later_session() -> None:
    seen = Seen(Subscribe("a/#"))
    assert asked(seen) == (None, {})
    seen.began(5)
    assert asked(seen) == (5, {})
    saw(seen, "a/1", 7)
    seen.began(9)
    assert asked(seen) == (5, {"a/1": (0, 7, 0)})


def test_on_another_broker_it_wants_all_also_when_it_comes_back_there() -> None:
    seen = Seen(Subscribe("a/#"))
    seen.began(5)
    saw(seen, "a/1", 7)
    seen.other_broker()
    assert asked(seen) == (0, {})
    seen.began(3)
    assert asked(seen) == (0, {})


def test_a_first_message_that_two_sessions_lose_comes_in_the_third() -> None:
    talk = Talk()
    publisher = talk.peer("publisher")
    seen = Seen(Subscribe("a"))
    for session in range(3):
        reader = talk.peer(f"reader-{session}")
        for frame in seen.frames(1, 7, again=session > 0):
            reader.session.put(frame)
        talk.settle()
        (done,) = [frame for frame in reader.all_of(Kind.DONE) if frame.target == 7]
        seen.began(done.sequence)
        if not session:
            reader.reading = False
            publisher.publish("a", b"first")
        if session < 2:
            # Whatever has arrived by now is lost with the process's memory of it: nothing was seen.
            reader.die()
    assert reader.payloads() == [b"first"]


def test_members_of_queue_groups_do_not_go_on() -> None:
    seen = Seen(Subscribe("a", queue_group="workers"))
    seen.began(5)
    assert asked(seen) == (None, {})
    frames: list[Frame] = list(seen.frames(1, 2, again=True))
    assert len(frames) == 1


def test_topics_and_lanes_that_alternate_are_all_named_with_their_last_sequences() -> None:
    seen = Seen(Subscribe("a/#"))
    seen.began(5)
    for sequence in (1, 2):
        for lane in (0, 1, 2):
            seen.saw("a/1", lane, 10 * sequence + lane)
            seen.saw("a/2", lane, 20 * sequence + lane)
    assert asked(seen) == (5, {"a/1": (20, 21, 22), "a/2": (40, 41, 42)})
    seen.saw("a/2", 1, 50)
    assert asked(seen) == (5, {"a/1": (20, 21, 22), "a/2": (40, 50, 42)})


def test_members_of_queue_groups_note_one_topic_for_each_lane() -> None:
    seen = Seen(Subscribe("a/#", queue_group="workers"))
    for number in range(10):
        seen.saw(f"a/{number}", 1, number + 1)
    assert seen.lanes == ({}, {"a/9": 10}, {})
