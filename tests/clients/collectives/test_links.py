"""Groups over links: who is linked, and what is told when a link, a rank or the luck of an instant is lost."""

from __future__ import annotations

import itertools
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial

import msgspec
import numpy as np
import pytest

import clients
from broker.collectives.ring import Outcome
from broker.limits_links import LINK_HALF_OPEN_MAX
from broker.protocol.links import HELLO_BYTES, Greeting, Reach, address_of, greet
from clients.collectives import door as door_module
from clients.collectives import entrance
from clients.collectives.door import Door, Meeting
from clients.collectives.entrance import Entrance
from tests.clients.collectives.test_boards import join_all
from tests.clients.conftest import Connect, stand_in
from tests.clients.ranks import outcomes_of
from tests.clients.serving import ServingThread
from tests.clients.test_groups import PATIENCE_S, on_all_ranks
from tests.collectives import link_engine
from tests.collectives.link_engine import Broken, Engine
from tests.daemon import Process
from tests.descriptors import opened
from tests.loopback import free_ports, own_host, refusing

pytestmark = pytest.mark.usefixtures("links")


@pytest.fixture
def broker() -> Iterator[ServingThread]:
    with ServingThread("tcp://127.0.0.1:0") as serving:
        yield serving


@pytest.fixture
def doors(monkeypatch: pytest.MonkeyPatch) -> list[Door]:
    """The doors that clients have opened."""
    opened: list[Door] = []

    def opening(sock: socket.socket) -> Door:
        opened.append(Door(sock))
        return opened[-1]

    monkeypatch.setattr(entrance, "Door", opening)
    return opened


class Wires:
    """The ends of all links that were made, so that a test can cut them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ends: list[int] = []
        take = Meeting.take

        def taking(meeting: Meeting) -> list[list[int]]:
            links = take(meeting)
            self._ends += [os.dup(end) for lanes in links for end in lanes]
            return links

        monkeypatch.setattr(Meeting, "take", taking)

    def cut(self) -> None:
        while self._ends:
            with socket.socket(fileno=self._ends.pop()) as end:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue


@pytest.fixture
def wires(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wires]:
    wires = Wires(monkeypatch)
    yield wires
    wires.cut()


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """From when it is set on nobody goes to meet others, and the broker waits for all."""
    monkeypatch.setattr("broker.state.links.LINK_MEETING_S", 10 * PATIENCE_S)
    apart, meet = threading.Event(), Entrance.meet

    def meeting(self: Entrance, meeting: Meeting) -> None:
        if not apart.is_set():
            meet(self, meeting)

    monkeypatch.setattr(Entrance, "meet", meeting)
    return apart


def misplaced(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """The second client to join says that it is somewhere else."""
    reach, asked = Entrance.reach, []

    def reaching(self: Entrance, *arguments: object) -> Reach | None:
        asked.append(self)
        found = reach(self, *arguments)
        return msgspec.structs.replace(found, addresses=[address]) if len(asked) == 2 else found

    monkeypatch.setattr(Entrance, "reach", reaching)


def in_turn(*wishes: tuple[clients.Client, dict[str, object]]) -> list[object]:
    """As join_all, but each joins when the one before has asked to."""
    asked = [threading.Event() for _ in wishes]
    reach = Entrance.reach

    def join(rank: int) -> clients.Group:
        bus, options = wishes[rank]
        if rank:
            asked[rank - 1].wait(PATIENCE_S)
        return bus.group("dp", world_size=len(wishes), rank=rank, timeout_s=PATIENCE_S, **options)

    def reaching(self: Entrance, *arguments: object) -> Reach | None:
        found = reach(self, *arguments)
        next(event for event in asked if not event.is_set()).set()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Entrance, "reach", reaching)
        return outcomes_of(*(partial(join, rank) for rank in range(len(wishes))))


def totals(groups: list[clients.Group]) -> list[object]:
    """What each rank gets of an all-reduce of its rank plus one, as a list."""

    def total(group: clients.Group) -> object:
        return group.all_reduce(np.full(5, group.rank + 1.0, np.float32), timeout_s=PATIENCE_S).tolist()

    return outcomes_of(*(partial(total, group) for group in groups))


def test_ranks_over_a_network_are_linked_in_every_generation(connect: Connect) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        found = [group.schedule]
        total = group.all_reduce(np.ones(70_000, np.float32))
        if group.rank == 1:
            group.leave()
            return found, total[-1]
        with pytest.raises(clients.GenerationChangedError) as caught:
            group.barrier(timeout_s=PATIENCE_S)
        again = group.all_reduce(np.ones(2, np.float32))[-1]
        return [*found, group.schedule], total[-1], caught.value.lost_ranks, again

    assert on_all_ranks(connect, 3, work) == [
        (["ring", "ring"], 3.0, [1], 2.0),
        (["ring"], 3.0),
        (["ring", "ring"], 3.0, [1], 2.0),
    ]


@pytest.mark.parametrize("asked", ["ring", "halving", "hierarchical"])
def test_the_schedule_that_one_rank_asks_for_is_used(connect: Connect, asked: str) -> None:
    groups = join_all((connect("a"), {"schedule": asked}), (connect("b"), {}))
    assert [group.schedule for group in groups] == [asked, asked]
    assert totals(groups) == [[3.0] * 5] * 2


def test_hosts_with_several_ranks_add_up_inside_first(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = itertools.cycle("AB")
    monkeypatch.setattr(entrance, "host_identity", lambda: next(hosts))

    def work(group: clients.Group, _: clients.Client) -> object:
        found = [group.schedule]
        for elements in (1, 5000, 600_000):
            array = np.full(elements, group.rank + 1, np.float32)
            group.all_reduce(array)
            found += [float(array.min()), float(array.max())]
        return found

    assert on_all_ranks(connect, 4, work) == [["hierarchical", *([10.0, 10.0] * 3)]] * 4


def test_one_rank_that_asks_for_star_is_enough_for_star(connect: Connect) -> None:
    groups = join_all((connect("a"), {}), (connect("b"), {"schedule": "star"}))
    assert [group.schedule for group in groups] == ["star", "star"]
    assert totals(groups) == [[3.0] * 5] * 2


def test_a_ring_is_refused_where_a_rank_does_not_offer_it(connect: Connect) -> None:
    outcomes = join_all((connect("a"), {"schedule": "ring"}), (connect("b"), {"schedule": "star"}))
    assert isinstance(outcomes[0], clients.CollectiveError)
    assert "not all members can be linked" in str(outcomes[0])


def test_a_rank_that_cannot_be_dialled_takes_everybody_to_star_and_the_pair_is_named(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with refusing() as (host, port), caplog.at_level(logging.WARNING):
        misplaced(monkeypatch, f"{host}:{port}")
        groups = in_turn((connect("a"), {}), (connect("b"), {}), (connect("c"), {}))
    assert [group.schedule for group in groups] == ["star"] * 3
    assert totals(groups) == [[6.0] * 5] * 3
    cause = f"rank 0 cannot reach rank 1: {host}:{port}: Connection refused"
    said = [record.getMessage() for record in caplog.records if "links.none" in record.getMessage()]
    assert len(said) == 3
    assert all(cause in line for line in said)


def test_a_ring_that_cannot_be_made_is_refused_with_the_pair(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing() as (host, port):
        misplaced(monkeypatch, f"{host}:{port}")
        outcomes = in_turn((connect("a"), {"schedule": "ring"}), (connect("b"), {"schedule": "ring"}))
    for outcome in outcomes:
        assert isinstance(outcome, clients.CollectiveError)
    assert "rank 0 cannot reach rank 1" in str(outcomes[0])


def test_somebody_else_who_answers_is_not_taken_for_a_rank(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as impostor:

        def answer() -> None:
            sock, _ = impostor.accept()
            with sock:
                sock.recv(HELLO_BYTES)
                sock.sendall(bytes(32))

        thread = threading.Thread(target=answer)
        thread.start()
        misplaced(monkeypatch, f"127.0.0.1:{impostor.getsockname()[1]}")
        groups = in_turn((connect("a"), {}), (connect("b"), {}))
        thread.join(PATIENCE_S)
    assert [group.schedule for group in groups] == ["star", "star"]
    assert totals(groups) == [[3.0] * 5] * 2


@pytest.mark.parametrize(
    "rubbish",
    [
        b"GET / HTTP/1.1\r\n\r\n", b"\x93TBLINK\n" + bytes(HELLO_BYTES - 8), b"\x93TBLI",
        greet(Greeting(1, 1, 0, 1, 0), bytes(32)), greet(Greeting(1, 1, 9, 1, 0), bytes(32)),
        greet(Greeting(1, 1, 0, 1, 9), bytes(32)), greet(Greeting(77, 1, 0, 1, 0), bytes(32)),
    ],
    ids=["http", "zeros", "short", "no-secret", "no-such-rank", "no-such-lane", "no-such-group"],
)  # fmt: skip
def test_strangers_are_refused_with_a_line_in_the_log_and_do_no_harm(
    connect: Connect,
    doors: list[Door],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    rubbish: bytes,
) -> None:
    monkeypatch.setattr(door_module, "LINK_HELLO_S", 0.2)
    groups = join_all((connect("a"), {}), (connect("b"), {}))
    for door in doors:
        with socket.create_connection(address_of(door.address)) as stranger, caplog.at_level(logging.INFO):
            stranger.sendall(rubbish)
            stranger.shutdown(socket.SHUT_WR)
            stranger.settimeout(PATIENCE_S)
            try:
                assert stranger.recv(100) == b""
            except ConnectionResetError:
                continue
    assert "door.refused" in caplog.text
    assert totals(groups) == [[3.0] * 5] * 2


def test_many_strangers_who_say_nothing_keep_no_rank_out(connect: Connect, doors: list[Door]) -> None:
    groups = join_all((connect("a"), {}), (connect("b"), {}), (connect("c"), {}))
    strangers = []
    for door in doors:
        strangers += [socket.create_connection(address_of(door.address)) for _ in range(LINK_HALF_OPEN_MAX + 20)]
    groups[2].leave()
    changes = totals(groups[:2])
    assert [type(change) for change in changes] == [clients.GenerationChangedError] * 2
    assert totals(groups[:2]) == [[3.0] * 5] * 2
    assert [group.schedule for group in groups[:2]] == ["ring", "ring"]
    for stranger in strangers:
        stranger.close()


def test_a_link_that_is_cut_begins_a_generation_with_new_links_and_nobody_lost(connect: Connect, wires: Wires) -> None:
    groups = join_all((connect("a"), {}), (connect("b"), {}), (connect("c"), {}))
    for generation in (1, 2, 3, 4):
        assert totals(groups) == [[6.0] * 5] * 3
        wires.cut()
        for change in totals(groups):
            assert isinstance(change, clients.GenerationChangedError)
            assert (change.generation, change.lost_ranks) == (generation + 1, [])
        # It is decided before the next operation begins.
        assert totals(groups) == [[6.0] * 5] * 3
        assert [group.schedule for group in groups] == ["ring"] * 3


def test_a_change_is_told_before_those_who_are_left_are_linked(connect: Connect, apart: threading.Event) -> None:
    buses = [connect(name) for name in "abcd"]
    groups = join_all(*((bus, {}) for bus in buses))
    assert totals(groups) == [[10.0] * 5] * 4
    apart.set()
    buses[3].close()
    while len(groups[0].ranks) == 4:
        buses[0].flush()
    (change,) = totals(groups[:1])
    assert isinstance(change, clients.GenerationChangedError)
    assert change.lost_ranks == [3]
    assert not groups[0]._place.decided.ready, "it was told when the others were linked"


def test_who_waits_to_be_linked_is_told_of_the_next_change(connect: Connect, apart: threading.Event) -> None:
    buses = [connect(name) for name in "abcd"]
    groups = join_all(*((bus, {}) for bus in buses))
    apart.set()
    buses[3].close()
    assert isinstance(totals(groups[:1])[0], clients.GenerationChangedError)
    place, told = groups[0]._place, []
    waiting = threading.Thread(target=lambda: told.extend([*totals(groups[:1]), place.decided.ready]))
    waiting.start()
    # It waits, on whatever thread, or is about to.
    buses[2].close()
    waiting.join(PATIENCE_S)
    change, decided = told
    assert isinstance(change, clients.GenerationChangedError)
    assert change.lost_ranks == [2]
    assert not decided


def test_links_that_break_before_anything_is_finished_are_given_up(connect: Connect, wires: Wires) -> None:
    groups = join_all((connect("a"), {}), (connect("b"), {}))
    for _ in range(2):
        wires.cut()
        assert [type(change) for change in totals(groups)] == [clients.GenerationChangedError] * 2
        assert all(group._place.decided.ready or group.schedule for group in groups)
        for group in groups:
            wait_decided(group)
    assert totals(groups) == [[3.0] * 5] * 2
    assert [group.schedule for group in groups] == ["star", "star"]


def wait_decided(group: clients.Group) -> None:
    """Until it is known how the group's operations go."""
    ready = threading.Event()
    place = group._place
    place.decided.callbacks.append(ready.set)
    if place.decided.ready:
        ready.set()
    assert ready.wait(PATIENCE_S)


class Doubtful(Engine):
    """An engine that loses its links when it has the whole result.

    Attributes:
        told: whether it has told the others before.
    """

    told = False
    doubting = 1
    others_done = threading.Event()
    outcomes: list[int] = []

    def run(self, task: object) -> int:
        status = super().run(task)  # type: ignore[arg-type]
        if self.position != self.doubting:
            self.others_done.set()
        else:
            self.outcomes.append(status)
        return status

    def _say(self, kind: int, claim: bytes, data: bytes) -> None:
        if kind == link_engine._HAVE and self.position == self.doubting and not self.told:
            self.end()
            raise Broken
        super()._say(kind, claim, data)

    def _gather(self, task: object, kind: int, deadline: float, take: Callable[[int, bytes, bytes], object]) -> None:
        if kind == link_engine._HAVE and self.position == self.doubting:
            for at, sock in self.socks.items():
                sock.setblocking(True)
                sock.sendall(self.out[at])
            assert self.others_done.wait(PATIENCE_S)
            self.end()
            raise Broken
        super()._gather(task, kind, deadline, take)  # type: ignore[arg-type]


@pytest.mark.parametrize("told", [False, True], ids=["nobody-has-finished", "the-other-has-finished"])
@pytest.mark.parametrize("async_op", [False, True])
def test_what_a_rank_cannot_know_itself_is_settled_alike_on_all(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, told: bool, async_op: bool
) -> None:
    monkeypatch.setattr(link_engine, "Engine", Doubtful)
    stand_in(monkeypatch)
    monkeypatch.setattr(Doubtful, "told", told)
    monkeypatch.setattr(Doubtful, "others_done", threading.Event())
    monkeypatch.setattr(Doubtful, "outcomes", [])

    def work(group: clients.Group, _: clients.Client) -> object:
        array = np.full(70_000, group.rank + 1.0, np.float32)
        try:
            if async_op:
                group.all_reduce(array, async_op=True, timeout_s=PATIENCE_S).wait()
            else:
                group.all_reduce(array, timeout_s=PATIENCE_S)
            said = "finished"
        except clients.GenerationChangedError as error:
            said = f"changed {error.lost_ranks}"
        return said, array[-1]

    outcomes = on_all_ranks(connect, 2, work)
    assert outcomes == ([("finished", 3.0)] * 2 if told else [("changed []", 1.0), ("changed []", 2.0)])
    assert Doubtful.outcomes == [Outcome.COMMITTED if async_op and told else Outcome.UNDECIDED] or async_op


def test_a_rank_whose_client_is_closed_is_lost_to_all_survivors(connect: Connect) -> None:
    buses = [connect(name) for name in "abc"]
    groups = join_all(*((bus, {}) for bus in buses))
    assert totals(groups) == [[6.0] * 5] * 3
    buses[1].close()
    for change in totals([groups[0], groups[2]]):
        assert isinstance(change, clients.GenerationChangedError)
        assert change.lost_ranks == [1]
    assert totals([groups[0], groups[2]]) == [[4.0] * 5] * 2


def test_the_environment_says_where_a_rank_is_reached(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, doors: list[Door]
) -> None:
    host = own_host()
    ports = free_ports(host)
    monkeypatch.setenv("TENSORBUS_LINK_ADDRESS", f"{host}:{ports[0]}-{ports[1]}")
    groups = join_all((connect("a"), {}), (connect("b"), {}))
    assert {door.address for door in doors} == {f"{host}:{port}" for port in ports}
    assert totals(groups) == [[3.0] * 5] * 2
    assert [group.schedule for group in groups] == ["ring", "ring"]


def test_a_rank_without_a_free_port_takes_everybody_to_star(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("TENSORBUS_LINK_ADDRESS", f":{taken.getsockname()[1]}")
        groups = join_all((connect("a"), {}), (connect("b"), {}))
    assert [group.schedule for group in groups] == ["star", "star"]


def test_a_malformed_link_address_is_refused(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBUS_LINK_ADDRESS", "trainer-1")
    with pytest.raises(clients.InvalidValue, match="TENSORBUS_LINK_ADDRESS"):
        connect("a").group("dp", world_size=1)


def test_no_descriptor_and_no_thread_outlives_a_group(connect: Connect) -> None:
    buses = [connect(f"rank-{rank}") for rank in range(3)]
    buses[0].flush()
    before = descriptors()
    for _ in range(3):
        groups = join_all(*((bus, {}) for bus in buses))
        assert totals(groups) == [[6.0] * 5] * 3
        for group in groups:
            group.leave()
        del groups, group
    for thread in threading.enumerate():
        if thread.name == "tensorbus-door":
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
    assert descriptors() <= before


def descriptors() -> int:
    """Open sockets of this process, which is also the broker's."""
    return sum(each.startswith("socket:") for each in opened())


def test_a_child_after_fork_takes_no_link_away(broker: ServingThread) -> None:
    program = Process(broker.url, module="tests.clients.linked_forking")
    try:
        assert [program.read_line() for _ in range(2)] == ["child: ended 0", "parent: [3.0, 3.0] over ring"]
        assert program.wait() == 0, program.errors
    finally:
        program.close()
