"""A stand-in for the engine of links, in Python: everybody sends everything to everybody.

It has the engine's interface and its outcomes, and can be told to lose its links in the last moment of an operation.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from broker.collectives.claims import CollectiveKind, ReduceOp
from broker.collectives.reduce import accumulate
from broker.collectives.ring import Glance, Outcome

_HEADER = struct.Struct("<BQIQ")
_GIVE, _HAVE, _FAIL = 1, 2, 3
_SLICE_S = 0.05


class Plan:
    def __init__(
        self,
        kind: CollectiveKind,
        claim: bytes,
        positions: int,
        *,
        op: ReduceOp | None = None,
        dtype: str = "uint8",
        array_bytes: int = 0,
        root: int = 0,
        impossible: bool = False,
        schedule: str = "auto",
    ) -> None:
        self.kind, self.claim, self.positions, self.op, self.dtype = kind, claim, positions, op, dtype
        self.array_bytes = self.result_bytes = array_bytes
        self.root, self.impossible, self.schedule = root, impossible, schedule
        if kind is CollectiveKind.ALL_GATHER:
            self.result_bytes *= positions
        elif kind is CollectiveKind.REDUCE_SCATTER:
            self.result_bytes //= positions

    def result(self, position: int, given: list[bytes]) -> bytes:
        if self.kind is CollectiveKind.BROADCAST:
            return given[self.root]
        if self.kind is CollectiveKind.ALL_GATHER:
            return b"".join(given)
        if self.kind is CollectiveKind.BARRIER:
            return b""
        assert self.op is not None
        whole = bytearray(self.array_bytes)
        accumulate(self.op, given, self.dtype, self.positions, whole)
        if self.kind is CollectiveKind.REDUCE_SCATTER:
            return bytes(whole[position * self.result_bytes : (position + 1) * self.result_bytes])
        return bytes(whole)


def _bytes(array: object) -> memoryview:
    return memoryview(np.asarray(array).reshape(-1).view(np.uint8))


class Task:
    def __init__(
        self, plan: Plan, source: object, target: object, timeout_ns: int, scratch: bool = False, priority: int = 0
    ) -> None:
        self.plan, self.source, self.target = plan, source, target
        self.wait_ns = timeout_ns
        self.status: int = Outcome.PENDING
        self.sequence = 0
        self.positions: list[int] = []
        self.timeout_ns = 0
        self.claim = plan.claim
        self.seen: dict[int, bytes] = {}
        self.kept = b""

    def claims(self) -> dict[int, bytes]:
        return self.seen


class Broken(Exception):
    """The links are over."""


class Failed(Exception):
    """The operation has failed on all ranks."""


class Engine:
    """As ring.Engine.

    Attributes:
        hesitate: called, if set, when this position has the whole result and has told nobody.
    """

    hesitate: Callable[[Engine], None] | None = None

    def __init__(self, links: Sequence[Sequence[int]], position: int, descriptor: int = -1) -> None:
        self.position, self.positions, self.descriptor = position, len(links), descriptor
        self.socks = {at: socket.socket(fileno=lanes[0]) for at, lanes in enumerate(links) if at != position}
        self.inbox: dict[int, deque[tuple[int, int, bytes, bytes]]] = {at: deque() for at in self.socks}
        self.raw = dict.fromkeys(self.socks, b"")
        self.out = dict.fromkeys(self.socks, b"")
        self.ended = False
        self.sequence = 0
        self.turn = threading.Lock()
        self.done = threading.Condition()
        self.queue: deque[Task] = deque()
        self.wake = os.eventfd(0, os.EFD_NONBLOCK)
        self.worker: threading.Thread | None = None

    def run(self, task: Task) -> int:
        with self.turn:
            self._carry_out(task)
        return task.status

    def submit(self, task: Task) -> None:
        with self.done:
            self.queue.append(task)
            if self.worker is None:
                self.worker = threading.Thread(target=self._work, daemon=True)
                self.worker.start()

    def _work(self) -> None:
        while True:
            with self.done:
                if not self.queue:
                    self.worker = None
                    return
                task = self.queue[0]
            self.run(task)
            with self.done:
                self.queue.popleft()
                self.done.notify_all()
            if self.descriptor >= 0:
                os.eventfd_write(self.descriptor, 1)

    def wait(self, task: Task, timeout_s: float) -> int:
        with self.done:
            self.done.wait_for(lambda: task.status != Outcome.PENDING, timeout_s)
            return task.status

    def settle(self, task: Task, *, committed: bool) -> int:
        assert task.status == Outcome.UNDECIDED
        self._finish(task, task.kept) if committed else setattr(task, "status", Outcome.OVER)
        return task.status

    def glance(self, after: int, thinning: int) -> Glance:
        return Glance(time.monotonic_ns(), self.sequence, 0, 0, 0, 0, [])

    def end(self) -> None:
        self.ended = True
        for sock in self.socks.values():
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def close(self) -> None:
        self.end()
        with self.turn:
            for sock in self.socks.values():
                sock.close()

    # One operation.

    def _finish(self, task: Task, result: bytes) -> None:
        if task.target is not None and result:
            _bytes(task.target)[:] = result
        task.status = Outcome.COMMITTED

    def _carry_out(self, task: Task) -> None:
        self.sequence += 1
        task.sequence = self.sequence
        deadline = time.monotonic() + task.wait_ns / 1e9
        plan, whole = task.plan, False
        if self.ended:
            task.status = Outcome.OVER
            return
        data = bytes(_bytes(task.source)) if task.source is not None and plan.array_bytes else b""
        try:
            self._say(_GIVE, plan.claim, data)
            given = {self.position: data}
            task.seen = {self.position: plan.claim}

            def take(at: int, claim: bytes, each: bytes) -> None:
                given[at], task.seen[at] = each, claim

            self._gather(task, _GIVE, deadline, take)
            if len(set(task.seen.values())) > 1 or plan.impossible:
                task.positions, task.status = sorted(task.seen), Outcome.MISMATCH
                return
            result = task.kept = plan.result(self.position, [given[at] for at in range(self.positions)])
            whole = True
            if self.hesitate is not None:
                self.hesitate(self)
            self._say(_HAVE, b"", b"")
            self._gather(task, _HAVE, deadline, lambda at, claim, each: None)
            self._finish(task, result)
        except Broken:
            task.status = Outcome.UNDECIDED if whole else Outcome.OVER
        except Failed:
            return

    def _say(self, kind: int, claim: bytes, data: bytes) -> None:
        for at in self.out:
            self.out[at] += _HEADER.pack(kind, self.sequence, len(claim), len(data)) + claim + data

    def _gather(self, task: Task, kind: int, deadline: float, take: Callable[[int, bytes, bytes], object]) -> None:
        waiting = set(self.socks)
        while True:
            for at in list(self.socks):
                inbox = self.inbox[at]
                while inbox and inbox[0][1] < self.sequence:
                    inbox.popleft()
                if inbox and inbox[0][1] == self.sequence:
                    found, _, claim, data = inbox[0]
                    if found == _FAIL:
                        task.timeout_ns, *task.positions = struct.unpack(f"<{len(data) // 8}Q", data)
                        task.status = Outcome.MISSING
                        raise Failed
                    if found == kind and at in waiting:
                        inbox.popleft()
                        take(at, claim, data)
                        waiting.discard(at)
            if not waiting and not any(self.out.values()):
                return
            if time.monotonic() > deadline and kind == _GIVE and waiting:
                self._say(_FAIL, b"", struct.pack(f"<{1 + len(waiting)}Q", task.wait_ns, *sorted(waiting)))
                task.timeout_ns, task.positions, task.status = task.wait_ns, sorted(waiting), Outcome.MISSING
                for at, sock in self.socks.items():
                    sock.setblocking(True)
                    sock.sendall(self.out[at])
                    sock.setblocking(False)
                    self.out[at] = b""
                raise Failed
            self._move()

    def _move(self) -> None:
        if self.ended:
            raise Broken
        poller = select.poll()
        at_of = {}
        for at, sock in self.socks.items():
            at_of[sock.fileno()] = at
            poller.register(sock, select.POLLIN | (select.POLLOUT if self.out[at] else 0))
        for descriptor, events in poller.poll(_SLICE_S * 1000):
            at = at_of[descriptor]
            try:
                if events & select.POLLOUT:
                    sent = self.socks[at].send(self.out[at])
                    self.out[at] = self.out[at][sent:]
                if events & ~select.POLLOUT:
                    part = self.socks[at].recv(1 << 20)
                    if not part:
                        raise Broken
                    self.raw[at] += part
                    self._parse(at)
            except BlockingIOError:
                continue
            except OSError as error:
                raise Broken from error

    def _parse(self, at: int) -> None:
        raw = self.raw[at]
        while len(raw) >= _HEADER.size:
            kind, sequence, claim_bytes, data_bytes = _HEADER.unpack(raw[: _HEADER.size])
            end = _HEADER.size + claim_bytes + data_bytes
            if len(raw) < end:
                break
            claim = raw[_HEADER.size : _HEADER.size + claim_bytes]
            self.inbox[at].append((kind, sequence, claim, raw[_HEADER.size + claim_bytes : end]))
            raw = raw[end:]
        self.raw[at] = raw
