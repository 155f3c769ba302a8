"""Work queues: which member of a queue group gets which job of an acknowledged topic, and what becomes of it.

A `Work` is one queue group on one topic: its jobs, whether or not anybody is there to do them. A `Crew` is the members
of a group that have the same filter and may have the same topics, and so the same works. Both sides wait for each other
in the crew:

    a job comes     -> to the idlest member that has room; nobody has any -> its work waits among `hungry`
    room comes      -> the hungry works of the member's crew take turns; none is hungry -> the member waits for a job

A member has room while it has fewer unsettled jobs than its queue_messages and credit for another message. So a slow
one gets less, and what nobody has room for stays here, where priorities and newcomers can still change who gets it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final, TypeAlias

from broker.errors import ProtocolError
from broker.limits import REFUSAL_DELAY_S_MAX
from broker.protocol.bodies import Settle
from broker.protocol.frames import Flag
from broker.protocol.session import Phase
from broker.topics.messages import Assignment, Message
from broker.topics.policy import DEAD_LETTERS
from broker.topics.work import Holder, Job, JobState, WorkQueue

if TYPE_CHECKING:
    from broker.security.rules import Rules
    from broker.state.delivery import Subscription
    from broker.state.topics import TopicRecord

_TRACKED: Final = int(Flag.TRACKED)
_CrewKey: TypeAlias = "tuple[str, str, Rules | None]"


class Work:
    """One queue group on one topic.

    Attributes:
        topic: its record.
        group: the queue group's name.
        queue: the jobs.
        crews: the members, by filter.
        blocking: the topic, while its publishers wait because of this work; as of a subscription.
    """

    __slots__ = ("blocking", "crews", "group", "queue", "topic")

    def __init__(self, topic: TopicRecord, group: str) -> None:
        self.topic = topic
        self.group = group
        self.queue = WorkQueue(0, 0)
        self.crews: dict[Crew, None] = {}
        self.blocking: dict[TopicRecord, None] = {}
        self.apply_policy()

    def apply_policy(self) -> None:
        """Takes over what the topic's policy says now."""
        policy = self.topic.policy
        self.queue.lease_ns = int(policy.lease_s * 1e9)
        # What lies among the dead letters has nowhere else to go.
        self.queue.max_deliveries = 0 if self.topic.name.startswith(DEAD_LETTERS) else policy.max_deliveries

    def holds_back(self, message: Message | None) -> bool:
        """Whether a publisher has to wait. A large message becomes a job when it is complete, so it never waits for
        itself."""
        return self.queue.over_limit

    @property
    def is_over(self) -> bool:
        """Whether nobody is there, nor anything to do."""
        return not self.crews and not self.queue.held

    @property
    def members(self) -> int:
        """Subscriptions that may get its jobs."""
        return sum(len(crew.workers) for crew in self.crews)

    def __repr__(self) -> str:
        return f"<Work {self.group!r} on {self.topic.name!r} {self.queue!r}>"


class Worker:
    """A subscription as a member of a queue group.

    Attributes:
        holder: the jobs that it has not settled.
        loads: under which loads it waits among the idle of its crew.
        gone: whether the subscription has ended.
    """

    __slots__ = ("_works", "crew", "gone", "holder", "loads", "subscription")

    def __init__(self, works: Works, subscription: Subscription, crew: Crew) -> None:
        self._works = works
        self.subscription = subscription
        self.crew = crew
        self.holder = Holder()
        self.loads: set[int] = set()
        self.gone = False

    @property
    def load(self) -> int:
        """Jobs that it has not settled."""
        return len(self.holder.jobs)

    @property
    def has_room(self) -> bool:
        """Whether it may get another job."""
        queue = self.subscription.queue
        return (
            not self.gone
            and len(self.holder.jobs) < queue.messages_max
            and queue.credit_messages > queue.waiting_messages
            and queue.credit_bytes > queue.waiting_bytes
            and self.subscription.session.session.phase is Phase.OPEN
        )

    def look_for_jobs(self) -> None:
        """It may have room for more."""
        self._works.room(self)

    def look_for_jobs_later(self) -> None:
        """It may have room for more, and must not be given any at the moment: it is looked at with the next tick."""
        self._works.returned[self] = None


class Crew:
    """The members of a queue group that have the same filter, and the same rules of what they may have.

    Attributes:
        workers: all of them.
        works: those whose jobs they may get.
        hungry: the works that had a job when nobody had room, in the order of their turns.
    """

    __slots__ = ("_idle", "_tickets", "hungry", "key", "workers", "works")

    def __init__(self, key: _CrewKey) -> None:
        self.key = key
        self.workers: dict[Worker, None] = {}
        self.works: dict[Work, None] = {}
        self.hungry: OrderedDict[Work, None] = OrderedDict()
        self._idle: list[tuple[int, int, Worker]] = []
        self._tickets = 0

    def rest(self, worker: Worker) -> None:
        """A worker with room waits for a job."""
        load = worker.load
        if load not in worker.loads:
            worker.loads.add(load)
            self._tickets += 1
            heappush(self._idle, (load, self._tickets, worker))

    def withdraw(self, worker: Worker) -> None:
        """A worker waits for no job; once it rests again, it has waited shorter than the others."""
        self._idle = [each for each in self._idle if each[2] is not worker]
        heapify(self._idle)
        worker.loads.clear()

    def idlest(self) -> Worker | None:
        """The worker with the fewest unsettled jobs of those that have room; of equals, who has waited longest."""
        while self._idle:
            load, _, worker = self._idle[0]
            if worker.load == load and worker.has_room:
                return worker
            heappop(self._idle)
            worker.loads.discard(load)
        return None


class Works:
    """All work queues of a broker."""

    def __init__(
        self,
        *,
        clock: Callable[[], int],
        bury: Callable[[TopicRecord, Message, Job], None],
        unblock: Callable[[Work], None],
    ) -> None:
        """Args:
        clock: the time of the event that is being dealt with, in nanoseconds.
        bury: publishes the message of a job that has died to the topic's dead-letter topic.
        unblock: called when `blocking` of a work is not empty and it is under its limit again.
        """
        self._clock = clock
        self._bury = bury
        self._unblock = unblock
        self.returned: dict[Worker, None] = {}
        """Members whose credit has come back while their sessions were being written to."""
        self._works: dict[WorkQueue, Work] = {}
        self._crews: dict[_CrewKey, Crew] = {}

    # Members.

    def enlist(self, subscription: Subscription) -> bool:
        """A subscription becomes a member of its queue group; says whether it is the first one of its crew."""
        key = subscription.queue_group, subscription.filter, subscription.rules
        crew = self._crews.get(key)
        is_first = crew is None
        if crew is None:
            crew = self._crews[key] = Crew(key)
        worker = subscription.worker = Worker(self, subscription, crew)
        crew.workers[worker] = None
        return is_first

    def resign(self, subscription: Subscription) -> None:
        """A member has ended: others get what it had not settled."""
        worker = subscription.worker
        if worker is None or worker.gone:
            return
        worker.gone = True
        crew = worker.crew
        del crew.workers[worker]
        if not crew.workers:
            del self._crews[crew.key]
            for work in crew.works:
                del work.crews[crew]
        self._came_back(worker.holder.leave(self._clock()))

    def room(self, worker: Worker) -> None:
        """A member may have room: it gets jobs that wait, or waits for some."""
        crew = worker.crew
        while crew.hungry and worker.has_room:
            work = next(iter(crew.hungry))
            if work.queue.waiting:
                crew.hungry.move_to_end(work)
                self._give(worker, work)
            if not work.queue.waiting:
                crew.hungry.pop(work, None)
        if worker.has_room:
            crew.rest(worker)

    # Works.

    def refresh(self, topic: TopicRecord, members: Iterable[Subscription]) -> list[Work]:
        """The works of an acknowledged topic, with those of groups that are new to it, as its policy says now.

        Args:
            topic: its record.
            members: of all queue groups whose filters match it.
        """
        for member in members:
            if member.worker is None:
                continue
            work = topic.works.get(member.queue_group)
            if work is None:
                work = Work(topic, member.queue_group)
                topic.works = {**topic.works, work.group: work}
                self._works[work.queue] = work
            crew = member.worker.crew
            if crew not in work.crews:
                work.crews[crew] = None
                crew.works[work] = None
                self._share_out(work)
        for work in topic.works.values():
            work.apply_policy()
        return list(topic.works.values())

    def forget(self, works: Iterable[Work]) -> None:
        """Works that hold nothing are gone."""
        for work in works:
            self._works.pop(work.queue, None)
            for crew in work.crews:
                crew.works.pop(work, None)
                crew.hungry.pop(work, None)

    @property
    def held_bytes(self) -> int:
        """Of all jobs that are not done, in each of their queue groups."""
        return sum(work.queue.held_bytes for work in self._works.values())

    def add(self, work: Work, message: Message) -> None:
        """One message has become a job."""
        work.queue.add(message)
        self._share_out(work)

    def _share_out(self, work: Work) -> None:
        while work.queue.waiting:
            idlest = [worker for crew in work.crews if (worker := crew.idlest()) is not None]
            if not idlest:
                for crew in work.crews:
                    crew.hungry[work] = None
                return
            worker = min(idlest, key=lambda each: each.load)
            self._give(worker, work)
            if worker.has_room:
                worker.crew.rest(worker)

    def _give(self, worker: Worker, work: Work) -> None:
        subscription = worker.subscription
        delivery = subscription.session.session.next_stream()
        job = work.queue.next(worker.holder, delivery, self._clock())
        if job is None:
            return
        message = job.message
        assignment = Assignment(message, message.flags | _TRACKED, delivery, job.deliveries)
        subscription.offer(assignment)
        assignment.release()

    # What becomes of jobs.

    def settle(self, subscription: Subscription, body: Settle) -> None:
        """SETTLE: a member is done with jobs, or refuses them.

        Raises:
            ProtocolError: it is in no queue group, or the delay cannot be.
        """
        worker = subscription.worker
        if worker is None:
            raise ProtocolError(f"SETTLE of subscription {subscription.number}, which is in no queue group")
        if not 0 <= body.delay_ns <= REFUSAL_DELAY_S_MAX * 1e9:
            raise ProtocolError(f"SETTLE with a delay of {body.delay_ns} ns; the limit is {REFUSAL_DELAY_S_MAX:g} s")
        now_ns, holder = self._clock(), worker.holder
        for delivery in body.deliveries:
            job = (
                holder.refuse(delivery, now_ns, body.delay_ns) if body.refused else holder.acknowledge(delivery, now_ns)
            )
            if job is None:
                continue
            if job.state is JobState.DONE:
                job.take_message().release()
                self._check_blocking(self._works[job.queue])
            else:
                self._came_back([job])
        self.room(worker)

    def tick(self, now_ns: int) -> None:
        """Time passes: leases run out, delays end."""
        returned, self.returned = self.returned, {}
        for worker in returned:
            self.room(worker)
        for work in list(self._works.values()):
            if work.queue.due_ns > now_ns:
                continue
            loads = {worker: worker.load for crew in work.crews for worker in crew.workers if worker.load}
            dead = work.queue.expire(now_ns)
            late = [worker for worker, load in loads.items() if worker.load < load]
            # Others first: who has stopped has fewest jobs then, and would get them again until they have died of it.
            for worker in late:
                worker.crew.withdraw(worker)
            self._bury_all(dead)
            self._share_out(work)
            # A lease that has run out leaves room with whoever had it.
            for worker in late:
                self.room(worker)

    def _came_back(self, jobs: list[Job]) -> None:
        self._bury_all([job for job in jobs if job.state is JobState.DEAD])
        for queue in dict.fromkeys(job.queue for job in jobs):
            self._share_out(self._works[queue])

    def _bury_all(self, dead: list[Job]) -> None:
        for job in dead:
            work = self._works[job.queue]
            message = job.take_message()
            self._bury(work.topic, message, job)
            message.release()
            self._check_blocking(work)

    def _check_blocking(self, work: Work) -> None:
        if work.blocking and not work.queue.over_limit:
            self._unblock(work)

    def __repr__(self) -> str:
        return f"<Works {len(self._works)} crews={len(self._crews)}>"
