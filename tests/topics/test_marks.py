"""Where a topic stood when subscriptions began."""

from __future__ import annotations

from broker.topics.marks import MARKS_MAX, Marks


def test_a_moment_is_followed_by_the_first_message_of_a_later_one() -> None:
    marks = Marks()
    assert marks.first_after(0) is None
    for moment, sequence in ((1, 1), (2, 4), (4, 5)):
        marks.note(moment, sequence)
    assert [marks.first_after(moment) for moment in range(6)] == [1, 4, 5, 5, None, None]
    assert marks.newest == 4


def test_old_marks_are_forgotten_and_what_was_published_before_them_with_them() -> None:
    marks = Marks()
    for moment in range(1, MARKS_MAX + 11):
        marks.note(moment, 10 * moment)
    assert marks.first_after(3) == 110
    assert marks.first_after(11) == 120
    assert marks.first_after(MARKS_MAX + 9) == 10 * MARKS_MAX + 100
