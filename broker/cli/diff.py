"""What `tensorbus diff` does: finds where ranks, or two recordings, began to differ.

Of one recording the rounds of `clients.Digests` are compared: in each round all ranks of a group say what they hold,
and the first round in which they do not say the same is where it began. Of two recordings the messages are compared:
the n-th of each topic and publisher in one with the n-th in the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import msgspec

from broker.cli.connect import ranks_text
from broker.cli.progress import with_bar
from broker.cli.terminal import printable
from broker.errors import BrokerError
from broker.topics.names import levels
from clients.digests import TOPIC
from clients.recordings import Reader, Recorded

DIFFERENCES_SHOWN: Final = 20
ROUNDS_OPEN_MAX: Final = 4096
"""Rounds of a group of which some rank may still be to come: nobody is so far behind."""


class Note(msgspec.Struct):
    """What a rank says it holds in a round; see clients/digests.py."""

    group: str
    generation: int
    round: int
    rank: int
    label: str
    digest: str


class Divergence(msgspec.Struct):
    """The first round in which the ranks of a group differ; a line of `--json`.

    Attributes:
        group: of the ranks.
        round: from 0 upwards.
        label: what was compared.
        generation: of the group.
        differing_ranks: that do not hold what most hold; of halves, the half without the lowest rank.
        agreeing_ranks: the others.
        digests: of each rank.
        rounds: that were compared, in which two or more ranks have said something.
        differing_rounds: of these.
    """

    group: str
    round: int
    label: str
    generation: int
    differing_ranks: list[int]
    agreeing_ranks: list[int]
    digests: dict[int, str]
    rounds: int
    differing_rounds: int


class Difference(msgspec.Struct, omit_defaults=True):
    """Where the messages of one publisher to one topic begin to differ; a line of `--json`.

    Attributes:
        topic: where.
        sender: the publisher's name; empty when publishers are not told apart.
        message: which one of the topic and the publisher, from 1 upwards.
        problem: `other`, or `missing in A` or `missing in B`.
        sequence_a: of the message in the first recording; 0 when it is missing.
        sequence_b: in the second one.
        differing: how many from there on differ or are missing.
    """

    topic: str
    sender: str
    message: int
    problem: str
    sequence_a: int
    sequence_b: int
    differing: int


class _Rounds:
    """The rounds of one group, compared in their order once all ranks had much time to say something."""

    def __init__(self) -> None:
        self.ranks: set[int] = set()
        self.compared = 0
        self._differing = 0
        self._first: dict[int, Note] | None = None
        self._open: dict[int, dict[int, Note]] = {}

    def add(self, note: Note) -> None:
        """A rank has said what it holds."""
        self.ranks.add(note.rank)
        self._open.setdefault(note.round, {})[note.rank] = note
        if len(self._open) > ROUNDS_OPEN_MAX:
            self._compare(min(self._open))

    def _compare(self, number: int) -> None:
        notes = self._open.pop(number)
        if len(notes) < 2:
            return
        self.compared += 1
        if len({note.digest for note in notes.values()}) > 1:
            self._differing += 1
            self._first = self._first or notes

    def first_divergence(self) -> Divergence | None:
        """What was found, once everything was added."""
        for number in sorted(self._open):
            self._compare(number)
        if self._first is None:
            return None
        digests = {rank: self._first[rank].digest for rank in sorted(self._first)}
        # Of equally common ones the first in the order of the ranks.
        common = Counter(digests.values()).most_common(1)[0][0]
        note = self._first[min(digests)]
        return Divergence(
            note.group, note.round, note.label, note.generation,
            [rank for rank, digest in digests.items() if digest != common],
            [rank for rank, digest in digests.items() if digest == common],
            digests, self.compared, self._differing,
        )  # fmt: skip


def compare_ranks(file: Path, *, as_json: bool) -> bool:
    """Prints for each group of a recording the first round in which its ranks differ; says whether any does.

    Raises:
        InvalidValue: it is no recording.
    """
    groups: dict[str, _Rounds] = {}
    with Reader(file) as reader:
        for recorded in with_bar(reader):
            note = _note(recorded)
            if note is not None:
                groups.setdefault(note.group, _Rounds()).add(note)
    found = {name: rounds.first_divergence() for name, rounds in sorted(groups.items())}
    for name, divergence in found.items():
        if as_json and divergence is not None:
            click.echo(msgspec.json.encode(divergence))
        elif not as_json:
            click.echo(printable(_about(name, groups[name], divergence)))
    if not groups and not as_json:
        click.echo(f"{file} has no digests: ranks publish them with clients.Digests", err=True)
    return any(found.values()) | _tell_problem(reader, file)


def _note(recorded: Recorded) -> Note | None:
    if levels(recorded.head.topic)[0] != TOPIC:
        return None
    try:
        return msgspec.convert(recorded.value, Note)
    except (msgspec.ValidationError, BrokerError):
        # Somebody else's message, on a topic of that name.
        return None


def _about(name: str, rounds: _Rounds, found: Divergence | None) -> str:
    if found is None:
        return f"{name}: ranks {ranks_text(list(rounds.ranks))} hold the same in all of {rounds.compared} rounds"
    label = f" ({found.label})" if found.label else ""
    return (
        f"{name}: round {found.round}{label}, generation {found.generation}: "
        f"{'rank' if len(found.differing_ranks) == 1 else 'ranks'} {ranks_text(found.differing_ranks)} "
        f"{'differs' if len(found.differing_ranks) == 1 else 'differ'} from {ranks_text(found.agreeing_ranks)}; "
        f"{found.differing_rounds} of {found.rounds} rounds differ"
    )


_Key = tuple[str, str]
_Messages = dict[_Key, list[tuple[str, int]]]


def compare_recordings(first: Path, second: Path, *, by_sender: bool, as_json: bool) -> bool:
    """Prints where the messages of two recordings begin to differ; says whether they do.

    Raises:
        InvalidValue: one is no recording.
    """
    sides: list[_Messages] = []
    damaged = False
    for file in (first, second):
        messages: _Messages = {}
        with Reader(file) as reader:
            for recorded in with_bar(reader):
                head = recorded.head
                key = head.topic, head.sender if by_sender else ""
                messages.setdefault(key, []).append((head.digest, head.sequence))
        damaged |= _tell_problem(reader, file)
        sides.append(messages)
    found = list(_differences(*sides))
    for difference in found if as_json else found[:DIFFERENCES_SHOWN]:
        click.echo(msgspec.json.encode(difference) if as_json else printable(_words(difference)))
    if not as_json:
        if len(found) > DIFFERENCES_SHOWN:
            click.echo(f"and {len(found) - DIFFERENCES_SHOWN} more")
        if not found:
            click.echo(f"the same {sum(map(len, sides[0].values()))} messages of {len(sides[0])} topics and publishers")
    return bool(found) | damaged


def _differences(first: _Messages, second: _Messages) -> Iterator[Difference]:
    for topic, sender in sorted(first.keys() | second.keys()):
        ours, theirs = first.get((topic, sender), []), second.get((topic, sender), [])
        pairs = zip(ours, theirs, strict=False)
        different = [index for index, (one, other) in enumerate(pairs) if one[0] != other[0]]
        common, longest = min(len(ours), len(theirs)), max(len(ours), len(theirs))
        if not different and common == longest:
            continue
        index = different[0] if different else common
        problem = "other" if different else "missing in B" if len(ours) > len(theirs) else "missing in A"
        yield Difference(
            topic, sender, index + 1, problem,
            ours[index][1] if index < len(ours) else 0,
            theirs[index][1] if index < len(theirs) else 0,
            len(different) + longest - common,
        )  # fmt: skip


def _words(found: Difference) -> str:
    sender = f" from {found.sender}" if found.sender else ""
    where = f"{found.topic}{sender}: message {found.message}"
    if found.problem == "other":
        sequences = f"sequence {found.sequence_a} in A, {found.sequence_b} in B"
        return f"{where} ({sequences}) is another one; {found.differing} differ"
    return f"{where} is {found.problem}, {found.differing} in all"


def _tell_problem(reader: Reader, file: Path) -> bool:
    if reader.problem:
        click.echo(f"tensorbus: {file} cannot be read to its end: {reader.problem}", err=True)
    return bool(reader.problem)
