"""The jobs of one queue group on one topic, from their arrival until they are done or dead. Pure: time is an argument.

    add() --> WAITING --next()--> LEASED --acknowledge()--> DONE
                 ^                  |
                 |   refuse(), lease over, holder lost: another delivery
                 +--- DELAYED <-----+--> DEAD, after max_deliveries

Waiting jobs go out by priority, highest first, and inside one in the order in which they came; a job that comes back
takes its old place. Each delivery has a number, by which its holder settles it.

**The lease.** A holder may have more jobs than it works on, because they are sent ahead. So a lease is counted from
the moment at which the holder can have begun: the oldest job's from its delivery, or from when the one before it was
settled; that of the jobs behind it also from any later settlement, which shows that the holder gets on. One stuck job
runs out of its lease while its neighbours are worked on, and all jobs of a holder that stands still come back together.

**What counts.** A refusal and a lease that ran out count towards max_deliveries. Of a holder that is lost only the
oldest job does: it may be what killed its worker, and those that only waited behind it are not to blame.

**Late.** A settlement that comes after the lease still finishes the job, unless it is done or dead already.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum
from heapq import heapify, heappop, heappush
from typing import Final

from broker.limits import LATE_SETTLEMENTS_MAX, WORK_BYTES_MAX, WORK_MESSAGES_MAX
from broker.topics.messages import Message

NEVER_NS: Final = 1 << 63
_SPARE_TIMERS: Final = 64
_NOTHING: Final = Message("", "", 0, 1, 0, 0, 0, 0, b"", b"", 0)


class JobState(Enum):
    """Where a job is."""

    WAITING = "waiting"
    DELAYED = "delayed"
    LEASED = "leased"
    DONE = "done"
    DEAD = "dead"


class Job:
    """One message that has to be worked on.

    Attributes:
        queue: to which it belongs.
        message: held until the job is done or dead and `take_message` hands the hold over.
        state: where it is.
        deliveries: how often it was given to a holder.
        failures: deliveries that failed and count.
        holder: who works on it.
        delivery: the number of its newest delivery.
        since_ns: from when its lease counts at the earliest.
        reason: why its last delivery failed, in words.
    """

    __slots__ = (
        "deliveries", "delivery", "failures", "holder", "message", "order", "queue", "reason", "since_ns", "state",
        "timer",
    )  # fmt: skip

    def __init__(self, queue: WorkQueue, message: Message, order: int) -> None:
        self.queue = queue
        self.message = message
        self.order = order
        self.state = JobState.WAITING
        self.deliveries = 0
        self.failures = 0
        self.holder: Holder | None = None
        self.delivery = 0
        self.since_ns = 0
        self.reason = ""
        self.timer = 0

    def take_message(self) -> Message:
        """Hands over the message, and the hold on it, of a job that is done or dead: others may still know the job."""
        message, self.message = self.message, _NOTHING
        return message

    def __repr__(self) -> str:
        return f"<Job {self.message!r} {self.state.value} deliveries={self.deliveries} failures={self.failures}>"


class Holder:
    """Whoever works on jobs, of one queue or of several.

    Attributes:
        jobs: those it has not settled, by the numbers of their deliveries, oldest first.
        progress_ns: when it has last settled one.
    """

    __slots__ = ("_late", "jobs", "progress_ns")

    def __init__(self) -> None:
        self.jobs: OrderedDict[int, Job] = OrderedDict()
        self.progress_ns = 0
        self._late: OrderedDict[int, Job] = OrderedDict()

    @property
    def oldest(self) -> Job | None:
        """The job that it must have begun."""
        return next(iter(self.jobs.values()), None)

    def acknowledge(self, delivery: int, now_ns: int) -> Job | None:
        """A job is done; returns it, or None when it was done or dead before or never was this holder's."""
        self.progress_ns = now_ns
        job = self.jobs.get(delivery) or self._late.pop(delivery, None)
        if job is None or job.state in (JobState.DONE, JobState.DEAD):
            return None
        job.queue.finish(job)
        return job

    def refuse(self, delivery: int, now_ns: int, delay_ns: int = 0) -> Job | None:
        """A job is given back, for another delivery after a while; returns it, dead perhaps, or None as above."""
        self.progress_ns = now_ns
        job = self.jobs.get(delivery)
        if job is None:
            return None
        job.queue.give_back(job, now_ns, "a worker refused it", delay_ns=delay_ns)
        return job

    def leave(self, now_ns: int) -> list[Job]:
        """The holder is lost, and gives back all that it has; returns these jobs, some of them dead perhaps."""
        jobs, oldest = list(self.jobs.values()), self.oldest
        for job in jobs:
            job.queue.give_back(job, now_ns, "its worker was lost", counts=job is oldest)
        self._late.clear()
        return jobs

    def lease_start_ns(self, job: Job) -> int:
        """From when the lease of one of its jobs counts."""
        return job.since_ns if job is self.oldest else max(job.since_ns, self.progress_ns)

    def remove(self, job: Job) -> None:
        """It does not hold a job any more; the one behind it counts from here, or from the last settlement."""
        was_oldest = job is self.oldest
        del self.jobs[job.delivery]
        follower = self.oldest
        if was_oldest and follower is not None:
            follower.since_ns = max(follower.since_ns, self.progress_ns)

    def remember(self, job: Job) -> None:
        """A settlement of this job may still come."""
        self._late[job.delivery] = job
        if len(self._late) > LATE_SETTLEMENTS_MAX:
            self._late.popitem(last=False)

    def __repr__(self) -> str:
        return f"<Holder jobs={len(self.jobs)}>"


class WorkQueue:
    """The jobs of one queue group on one topic.

    Attributes:
        lease_ns: how long a holder may take.
        max_deliveries: failed deliveries after which a job is dead; 0 sets no bound.
        waiting: jobs that wait for a holder.
        delayed: jobs that wait for a time.
        leased: jobs that holders work on.
        held_bytes: of all of these.
        redelivered: deliveries that were not a job's first, ever.
        dead: jobs that died, ever.
    """

    __slots__ = (
        "_orders", "_ready", "_timers", "_timers_set", "bytes_max", "dead", "delayed", "held_bytes", "lease_ns",
        "leased", "max_deliveries", "messages_max", "redelivered", "waiting",
    )  # fmt: skip

    def __init__(
        self,
        lease_ns: int,
        max_deliveries: int,
        messages_max: int = WORK_MESSAGES_MAX,
        bytes_max: int = WORK_BYTES_MAX,
    ) -> None:
        """Args:
        lease_ns: how long a holder may take, in nanoseconds.
        max_deliveries: failed deliveries after which a job is dead; 0 sets no bound.
        messages_max: jobs from which on publishers are to wait.
        bytes_max: bytes from which on publishers are to wait.
        """
        self.lease_ns = lease_ns
        self.max_deliveries = max_deliveries
        self.messages_max = messages_max
        self.bytes_max = bytes_max
        self.waiting = self.delayed = self.leased = 0
        self.held_bytes = 0
        self.redelivered = self.dead = 0
        self._ready: list[tuple[int, int, Job]] = []
        # An entry is in force while its number is the job's; the others are swept out when they are the most.
        self._timers: list[tuple[int, int, Job]] = []
        self._timers_set = 0
        self._orders = 0

    @property
    def held(self) -> int:
        """Jobs that are neither done nor dead."""
        return self.waiting + self.delayed + self.leased

    @property
    def over_limit(self) -> bool:
        """Whether publishers have to wait."""
        return self.held >= self.messages_max or self.held_bytes >= self.bytes_max

    @property
    def due_ns(self) -> int:
        """The earliest time at which `expire` may find something to do."""
        return self._timers[0][0] if self._timers else NEVER_NS

    def add(self, message: Message) -> Job:
        """A job has come. The queue holds its message."""
        self._orders += 1
        job = Job(self, message, self._orders)
        message.holders += 1
        self.held_bytes += message.size_bytes
        self._wait(job)
        return job

    def next(self, holder: Holder, delivery: int, now_ns: int) -> Job | None:
        """Gives the next waiting job to a holder; None when none waits.

        Args:
            holder: who will work on it.
            delivery: a number that the holder has not used for any job it may still settle.
            now_ns: the time.
        """
        while self._ready:
            job = heappop(self._ready)[2]
            if job.state is not JobState.WAITING:
                # A late settlement has finished it where it waited.
                continue
            self.waiting -= 1
            self.leased += 1
            self.redelivered += job.deliveries > 0
            job.deliveries += 1
            job.state, job.holder, job.delivery, job.since_ns = JobState.LEASED, holder, delivery, now_ns
            holder.jobs[delivery] = job
            self._set_timer(job, now_ns + self.lease_ns)
            return job
        return None

    def expire(self, now_ns: int) -> list[Job]:
        """Time has passed: leases run out, delays end. Returns the jobs that died of it."""
        dead = []
        while self._timers and self._timers[0][0] <= now_ns:
            _, number, job = heappop(self._timers)
            if job.timer != number:
                continue
            if job.holder is None:
                self.delayed -= 1
                self._wait(job)
                continue
            end_ns = job.holder.lease_start_ns(job) + self.lease_ns
            if end_ns > now_ns:
                self._set_timer(job, end_ns)
                continue
            job.holder.remember(job)
            self.give_back(job, now_ns, "its lease ran out")
            if job.state is JobState.DEAD:
                dead.append(job)
        return dead

    def give_back(self, job: Job, now_ns: int, reason: str, *, counts: bool = True, delay_ns: int = 0) -> None:
        """A delivery has failed: the job waits for another one, or is dead."""
        self._take_from_holder(job)
        job.reason = reason
        job.failures += counts
        if counts and 0 < self.max_deliveries <= job.failures:
            job.state = JobState.DEAD
            self.dead += 1
            self.held_bytes -= job.message.size_bytes
        elif delay_ns > 0:
            job.state = JobState.DELAYED
            self.delayed += 1
            self._set_timer(job, now_ns + delay_ns)
        else:
            self._wait(job)

    def finish(self, job: Job) -> None:
        """A job is done, wherever it is by now."""
        if job.state is JobState.LEASED:
            self._take_from_holder(job)
        elif job.state is JobState.DELAYED:
            self.delayed -= 1
            job.timer = 0
        else:
            self.waiting -= 1
        job.state = JobState.DONE
        self.held_bytes -= job.message.size_bytes

    def _take_from_holder(self, job: Job) -> None:
        assert job.holder is not None
        job.holder.remove(job)
        job.holder = None
        job.timer = 0
        self.leased -= 1

    def _wait(self, job: Job) -> None:
        job.state = JobState.WAITING
        job.timer = 0
        self.waiting += 1
        heappush(self._ready, (-job.message.priority, job.order, job))

    def _set_timer(self, job: Job, when_ns: int) -> None:
        self._timers_set += 1
        job.timer = self._timers_set
        heappush(self._timers, (when_ns, self._timers_set, job))
        if len(self._timers) > _SPARE_TIMERS + 2 * (self.leased + self.delayed):
            self._timers = [entry for entry in self._timers if entry[1] == entry[2].timer]
            heapify(self._timers)

    def __repr__(self) -> str:
        return f"<WorkQueue waiting={self.waiting} delayed={self.delayed} leased={self.leased} dead={self.dead}>"
