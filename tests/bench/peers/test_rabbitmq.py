"""RabbitMQ's server has a name service of its own, which ends with it."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from bench.nursery import Nursery
from bench.peers.rabbitmq import Rabbitmq
from bench.processes import Team


def children_of(process_id: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()]


@pytest.mark.measurement
def test_nothing_of_a_server_is_left(nursery: Nursery) -> None:
    contestant = Rabbitmq()
    if how := contestant.missing():
        pytest.skip(how)
    with Team(nursery, contestant, "tcp") as team:
        children = children_of(team.children[0].process_id)
        names = [Path(f"/proc/{child}/comm").read_text().strip() for child in children]
        assert "epmd" in names
        watches = [os.pidfd_open(child) for child in children]
    for watch in watches:
        assert select.select([watch], [], [], 10.0)[0]
        os.close(watch)
