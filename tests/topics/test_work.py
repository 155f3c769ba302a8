"""Jobs: waiting, leased, done or dead, exactly one of them."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.limits import LATE_SETTLEMENTS_MAX
from broker.topics.messages import Message
from broker.topics.work import NEVER_NS, Holder, Job, JobState, WorkQueue
from tests.thorough import rounds

LEASE = 100


def message(priority: int = 0, size_bytes: int = 10) -> Message:
    return Message("jobs", "publisher", 1, 1, 1, 0, 0, 0, b"", b"", size_bytes, priority=priority)


def queue(max_deliveries: int = 0, **bounds: int) -> WorkQueue:
    return WorkQueue(LEASE, max_deliveries, **bounds)


def take(subject: WorkQueue, holder: Holder, delivery: int, now_ns: int = 0) -> Job:
    job = subject.next(holder, delivery, now_ns)
    assert job is not None
    return job


def test_jobs_go_out_by_priority_and_then_in_order() -> None:
    subject, holder = queue(), Holder()
    low, high, also_low, highest = (subject.add(message(priority)) for priority in (0, 5, 0, 9))
    assert [take(subject, holder, number) for number in range(4)] == [highest, high, low, also_low]
    assert subject.next(holder, 4, 0) is None


def test_a_job_that_comes_back_takes_its_old_place() -> None:
    subject, holder = queue(), Holder()
    first, second = subject.add(message()), subject.add(message())
    assert take(subject, holder, 1) is first
    holder.refuse(1, 0)
    assert take(subject, holder, 2) is first
    assert first.deliveries == 2
    assert take(subject, holder, 3) is second
    assert subject.redelivered == 1


def test_a_done_job_is_gone_and_its_message_is_handed_back() -> None:
    subject, holder = queue(), Holder()
    job = subject.add(message())
    assert job.message.holders == 2
    take(subject, holder, 1)
    assert holder.acknowledge(1, 5) is job
    assert holder.acknowledge(1, 6) is None
    assert subject.held == subject.held_bytes == 0
    held = job.take_message()
    held.release()
    assert held.holders == 1


def test_a_lease_runs_out_at_its_time_and_not_before() -> None:
    subject, holder = queue(), Holder()
    job = subject.add(message())
    take(subject, holder, 1, now_ns=7)
    assert subject.due_ns == 7 + LEASE
    subject.expire(7 + LEASE - 1)
    assert job.state is JobState.LEASED
    subject.expire(7 + LEASE)
    assert job.state is JobState.WAITING
    assert not holder.jobs
    assert job.reason == "its lease ran out"


def test_a_job_that_waits_behind_another_one_is_not_at_work_yet() -> None:
    subject, holder = queue(), Holder()
    first, second = subject.add(message()), subject.add(message())
    take(subject, holder, 1), take(subject, holder, 2)
    holder.acknowledge(1, 90)
    subject.expire(90 + LEASE - 1)
    assert (first.state, second.state) == (JobState.DONE, JobState.LEASED)
    subject.expire(90 + LEASE)
    assert second.state is JobState.WAITING


def test_one_stuck_job_runs_out_while_the_ones_behind_it_are_worked_on() -> None:
    subject, holder = queue(), Holder()
    stuck, *others = (subject.add(message()) for _ in range(3))
    for number in range(3):
        take(subject, holder, number)
    holder.acknowledge(1, 60)
    subject.expire(LEASE)
    assert stuck.state is JobState.WAITING
    assert [job.state for job in others] == [JobState.DONE, JobState.LEASED]
    subject.expire(60 + LEASE)
    assert others[1].state is JobState.WAITING


def test_all_jobs_of_a_holder_that_stands_still_come_back_together() -> None:
    subject, holder = queue(), Holder()
    for number in range(10):
        subject.add(message())
        take(subject, holder, number)
    subject.expire(LEASE)
    assert subject.waiting == 10
    assert subject.due_ns == NEVER_NS


def test_of_a_lost_holder_only_the_oldest_job_is_charged() -> None:
    subject, holder = queue(max_deliveries=1), Holder()
    jobs = [subject.add(message()) for _ in range(3)]
    for number in range(3):
        take(subject, holder, number)
    assert holder.leave(5) == jobs
    assert [job.state for job in jobs] == [JobState.DEAD, JobState.WAITING, JobState.WAITING]
    assert [job.failures for job in jobs] == [1, 0, 0]
    assert jobs[0].reason == "its worker was lost"


def test_a_job_dies_after_its_deliveries_have_failed() -> None:
    subject, holder = queue(max_deliveries=3), Holder()
    job = subject.add(message())
    for number in range(2):
        take(subject, holder, number)
        assert holder.refuse(number, 0) is job
        assert job.state is JobState.WAITING
    take(subject, holder, 2, now_ns=10)
    assert subject.expire(10 + LEASE) == [job]
    assert (job.state, job.deliveries, subject.dead, subject.held, subject.held_bytes) == (JobState.DEAD, 3, 1, 0, 0)


def test_a_refused_job_can_be_put_off() -> None:
    subject, holder = queue(), Holder()
    job = subject.add(message())
    take(subject, holder, 1)
    holder.refuse(1, 10, delay_ns=50)
    subject.expire(59)
    assert (job.state, subject.waiting, subject.delayed) == (JobState.DELAYED, 0, 1)
    subject.expire(60)
    assert (job.state, subject.waiting, subject.delayed) == (JobState.WAITING, 1, 0)


def test_a_late_settlement_finishes_a_job_that_waits_again() -> None:
    subject, holder = queue(), Holder()
    job = subject.add(message())
    take(subject, holder, 1)
    subject.expire(LEASE)
    assert holder.refuse(1, LEASE) is None
    assert holder.acknowledge(1, LEASE) is job
    assert (job.state, subject.held, subject.held_bytes) == (JobState.DONE, 0, 0)
    assert subject.next(holder, 2, LEASE) is None


def test_a_late_settlement_finishes_a_job_that_another_one_has() -> None:
    subject, slow, heir = queue(), Holder(), Holder()
    job = subject.add(message())
    take(subject, slow, 1)
    subject.expire(LEASE)
    take(subject, heir, 1, LEASE)
    assert slow.acknowledge(1, LEASE + 1) is job
    assert not heir.jobs
    assert heir.acknowledge(1, LEASE + 2) is None
    assert subject.held == 0


def test_late_settlements_are_remembered_up_to_a_bound() -> None:
    subject, holder = queue(), Holder()
    for number in range(LATE_SETTLEMENTS_MAX + 1):
        subject.add(message())
        take(subject, holder, number)
    subject.expire(LEASE)
    assert holder.acknowledge(0, LEASE) is None
    assert holder.acknowledge(1, LEASE) is not None


def test_publishers_wait_when_there_are_too_many_jobs_or_bytes() -> None:
    subject, holder = queue(messages_max=2), Holder()
    subject.add(message())
    assert not subject.over_limit
    subject.add(message())
    take(subject, holder, 1)
    assert subject.over_limit
    holder.acknowledge(1, 0)
    assert not subject.over_limit
    by_bytes = queue(bytes_max=100)
    by_bytes.add(message(size_bytes=100))
    assert by_bytes.over_limit


def test_timers_of_settled_jobs_are_swept_out() -> None:
    subject, holder = queue(), Holder()
    for number in range(10_000):
        subject.add(message())
        take(subject, holder, number)
        holder.acknowledge(number, 0)
    assert len(subject._timers) < 200


class WorkModel(RuleBasedStateMachine):
    """Jobs against a reference that is a list of what was said about each, and knows nothing of heaps or timers."""

    def __init__(self) -> None:
        super().__init__()
        self.max_deliveries = 3
        self.subject = WorkQueue(LEASE, self.max_deliveries)
        self.now = 0
        self.holders: list[Holder] = [Holder() for _ in range(3)]
        self.delivery = 0
        self.jobs: list[Job] = []
        self.state: dict[Job, str] = {}
        self.failures: dict[Job, int] = {}
        self.deliveries: dict[Job, int] = {}
        # Of each holder what it has, in order: delivery, job, and since when it can have been at work.
        self.held: dict[Holder, list[list]] = {holder: [] for holder in self.holders}
        self.progress: dict[Holder, int] = dict.fromkeys(self.holders, 0)
        self.late: dict[Holder, dict[int, Job]] = {holder: {} for holder in self.holders}
        self.ready_at: dict[Job, int] = {}

    def fail(self, job: Job, *, counts: bool, delay: int = 0) -> None:
        self.failures[job] += counts
        if counts and self.failures[job] >= self.max_deliveries:
            self.state[job] = "dead"
        elif delay:
            self.state[job], self.ready_at[job] = "delayed", self.now + delay
        else:
            self.state[job] = "waiting"

    def drop(self, holder: Holder, job: Job) -> None:
        held = self.held[holder]
        was_first = held[0][1] is job
        held[:] = [entry for entry in held if entry[1] is not job]
        if was_first and held:
            held[0][2] = max(held[0][2], self.progress[holder])

    def holder_of(self, job: Job) -> Holder:
        return next(h for h in self.holders if any(entry[1] is job for entry in self.held[h]))

    @rule(priority=st.integers(0, 2))
    def add(self, priority: int) -> None:
        job = self.subject.add(message(priority))
        self.jobs.append(job)
        self.state[job], self.failures[job], self.deliveries[job] = "waiting", 0, 0

    @rule(index=st.integers(0, 2))
    def next(self, index: int) -> None:
        holder = self.holders[index]
        self.delivery += 1
        waiting = [job for job in self.jobs if self.state[job] == "waiting"]
        expected = min(waiting, key=lambda job: (-job.message.priority, self.jobs.index(job)), default=None)
        job = self.subject.next(holder, self.delivery, self.now)
        assert job is expected
        if job is not None:
            self.state[job] = "leased"
            self.deliveries[job] += 1
            self.held[holder].append([self.delivery, job, self.now])

    @rule(index=st.integers(0, 2), which=st.integers(0, 5), data=st.data())
    def acknowledge(self, index: int, which: int, data: st.DataObject) -> None:
        holder = self.holders[index]
        known = [entry[0] for entry in self.held[holder]] + list(self.late[holder])
        delivery = known[which % len(known)] if known else 10**9
        jobs = {entry[0]: entry[1] for entry in self.held[holder]} | self.late[holder]
        job = jobs.get(delivery)
        self.progress[holder] = self.now
        open_job = job if job is not None and self.state[job] not in ("done", "dead") else None
        assert holder.acknowledge(delivery, self.now) is open_job
        if open_job is not None:
            if self.state[open_job] == "leased":
                self.drop(self.holder_of(open_job), open_job)
            self.state[open_job] = "done"
        self.late[holder].pop(delivery, None)

    @precondition(lambda self: any(self.held.values()))
    @rule(index=st.integers(0, 2), which=st.integers(0, 5), delay=st.sampled_from([0, 30, 150]))
    def refuse(self, index: int, which: int, delay: int) -> None:
        holder = self.holders[index]
        held = self.held[holder]
        self.progress[holder] = self.now
        if not held:
            assert holder.refuse(10**9, self.now, delay) is None
            return
        delivery, job, _ = held[which % len(held)]
        assert holder.refuse(delivery, self.now, delay) is job
        self.drop(holder, job)
        self.fail(job, counts=True, delay=delay)

    @rule(index=st.integers(0, 2))
    def lose(self, index: int) -> None:
        holder = self.holders[index]
        held = list(self.held[holder])
        assert holder.leave(self.now) == [entry[1] for entry in held]
        for position, (_, job, _) in enumerate(held):
            self.fail(job, counts=position == 0)
        self.held[holder].clear()
        self.late[holder].clear()

    @rule(step=st.sampled_from([1, 40, LEASE, 3 * LEASE]))
    def time_passes(self, step: int) -> None:
        self.now += step
        dead = self.subject.expire(self.now)
        over = []
        for holder in self.holders:
            for position, (_, job, since) in enumerate(self.held[holder]):
                start = since if position == 0 else max(since, self.progress[holder])
                if start + LEASE <= self.now:
                    over.append((holder, job))
        for holder, job in over:
            delivery = next(entry[0] for entry in self.held[holder] if entry[1] is job)
            self.late[holder][delivery] = job
            self.drop(holder, job)
            self.fail(job, counts=True)
        for job in self.jobs:
            if self.state[job] == "delayed" and self.ready_at[job] <= self.now:
                self.state[job] = "waiting"
        assert set(dead) == {job for _, job in over if self.state[job] == "dead"}

    @invariant()
    def every_job_is_in_one_place(self) -> None:
        for job in self.jobs:
            assert job.state.value == self.state[job]
            assert job.failures == self.failures[job]
            assert job.deliveries == self.deliveries[job]
        count = list(self.state.values()).count
        subject = self.subject
        assert (subject.waiting, subject.delayed, subject.leased, subject.dead) == (
            count("waiting"), count("delayed"), count("leased"), count("dead"),
        )  # fmt: skip
        assert subject.held_bytes == 10 * subject.held
        for holder in self.holders:
            assert list(holder.jobs.items()) == [(entry[0], entry[1]) for entry in self.held[holder]]


TestWorkModel = WorkModel.TestCase
TestWorkModel.settings = settings(max_examples=rounds(150), stateful_step_count=60, deadline=None)
