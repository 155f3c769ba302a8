"""Rules against a matcher that tries every topic, on random cases: `python -m tests.security.random_rules --cases N`.

The world is small enough to try all of it: names `a`, `b`, one that no filter has, and `$s`; topics of one to four
levels. Filters have at most three levels, so a filter's `#` stands for more than any other filter names. Each filter is
a regular expression, and each set of topics one integer, a bit for each topic.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import sys
import time
from collections.abc import Iterable, Iterator

from broker.security.rules import Rules, covered, overlaps
from broker.topics.names import check_filter, check_topic

NAMES = ("a", "b")
OTHER = "other"
RESERVED = "$s"
FILTER_LEVELS = 3
TOPIC_LEVELS = FILTER_LEVELS + 1


def all_topics() -> list[str]:
    """Every topic of the world."""
    return [
        check_topic("/".join(parts), reserved=True)
        for depth in range(1, TOPIC_LEVELS + 1)
        for parts in itertools.product((*NAMES, OTHER, RESERVED), repeat=depth)
        if RESERVED not in parts[1:]
    ]


def all_filters() -> list[str]:
    """Every filter of the world."""
    found = []
    for depth in range(1, FILTER_LEVELS + 1):
        for parts in itertools.product((*NAMES, RESERVED, "+", "#"), repeat=depth):
            if "#" not in parts[:-1] and RESERVED not in parts[1:]:
                found.append(check_filter("/".join(parts)))
    return found


def pattern_of(topic_filter: str) -> re.Pattern[str]:
    """A filter as a regular expression; written from docs/wire.md section 4, and from nothing in broker."""
    text, rest = re.escape(topic_filter), ""
    if topic_filter == "#":
        return re.compile(r"(?!\$).+")
    if topic_filter.endswith("/#"):
        text, rest = re.escape(topic_filter[:-2]), "(/.+)?"
    text = text.replace(re.escape("+"), "[^/]+")
    hidden = r"(?!\$)" if topic_filter.startswith("+") else ""
    return re.compile(hidden + text + rest)


class World:
    """All topics and all filters, and which match."""

    def __init__(self) -> None:
        self.topics = all_topics()
        self.filters = all_filters()
        self.bits = {
            each: sum(1 << place for place, topic in enumerate(self.topics) if pattern_of(each).fullmatch(topic))
            for each in self.filters
        }

    def of(self, filters: Iterable[str]) -> int:
        """The topics that some of the filters match."""
        found = 0
        for each in filters:
            found |= self.bits[each]
        return found


def differences(cases: int, seed: int) -> Iterator[str]:
    """Goes through so many random cases; yields the ones in which rules and world differ."""
    world, choice = World(), random.Random(seed)
    for _ in range(cases):
        allow = tuple(choice.choices(world.filters, k=choice.randint(0, 4)))
        deny = tuple(choice.choices(world.filters, k=choice.choice((0, 0, 1, 2))))
        rules, allowed, denied = Rules(allow, deny), world.of(allow), world.of(deny)
        wanted, place = choice.choice(world.filters), choice.randrange(len(world.topics))
        topic, all_of_it = world.topics[place], world.bits[wanted]
        found = (
            rules.allows(topic), rules.admits(wanted), rules.allows_all(wanted),
            covered(wanted, allow), any(overlaps(wanted, each) for each in deny),
        )  # fmt: skip
        expected = (
            bool(allowed & ~denied & (1 << place)),
            not all_of_it & ~allowed and bool(all_of_it & ~denied),
            not all_of_it & (~allowed | denied),
            not all_of_it & ~allowed,
            bool(all_of_it & denied),
        )
        if found != expected:
            yield f"allow={allow} deny={deny} filter={wanted!r} topic={topic!r}: {found}, and by trying {expected}"


def main() -> int:
    """Says how many cases differ, and the first ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started_s, count = time.monotonic(), 0
    for count, difference in enumerate(differences(options.cases, options.seed), start=1):  # noqa: B007
        if count <= 10:
            print(difference)
    print(f"{options.cases} cases, seed {options.seed}: {count} differences, {time.monotonic() - started_s:.1f} s")
    return count > 0


if __name__ == "__main__":
    sys.exit(main())
