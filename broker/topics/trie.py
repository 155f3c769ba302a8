"""The topic trie: from topic filters to the values that are subscribed with them.

One node per filter level. A topic is matched level by level against a frontier of nodes: from each, the child of the
same name and the `+` child go on, and the values of the `#` child are found. The work grows with the filters that
match and not with those that exist.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final, Generic, TypeVar

from broker.topics.names import ALL_LEVELS, ONE_LEVEL, is_reserved, levels

T = TypeVar("T", bound=Hashable)


_CHILDLESS: Final[dict[str, Any]] = {}
"""The children of all leaves: nothing is added to it."""


class _Node(Generic[T]):
    __slots__ = ("children", "values")

    def __init__(self) -> None:
        self.children: dict[str, _Node[T]] = _CHILDLESS
        self.values: dict[T, int] = {}
        """Each value with its place in the order of all additions."""


class Trie(Generic[T]):
    """A set of (topic filter, value) pairs that finds the values whose filter matches a topic.

    Filters and topics must have been checked (`check_filter`, `check_topic`). Nodes are removed with their last value.

    Attributes:
        version: changes whenever the set does, so that what `match` returned can be kept until then.
    """

    def __init__(self) -> None:
        self.version = 0
        self._root: _Node[T] = _Node()
        self._length = 0

    def __len__(self) -> int:
        """The number of pairs."""
        return self._length

    def __repr__(self) -> str:
        return f"<Trie pairs={self._length} version={self.version}>"

    def add(self, topic_filter: str, value: T) -> None:
        """Adds a pair; one that is there already stays as it is, in its place."""
        node = self._root
        for level in levels(topic_filter):
            child = node.children.get(level)
            if child is None:
                if node.children is _CHILDLESS:
                    node.children = {}
                child = node.children[level] = _Node()
            node = child
        if value not in node.values:
            self.version += 1
            self._length += 1
            node.values[value] = self.version

    def remove(self, topic_filter: str, value: T) -> None:
        """Removes a pair.

        Raises:
            KeyError: the pair isn't there.
        """
        path: list[tuple[_Node[T], str]] = []
        node = self._root
        for level in levels(topic_filter):
            path.append((node, level))
            child = node.children.get(level)
            if child is None:
                raise KeyError((topic_filter, value))
            node = child
        if value not in node.values:
            raise KeyError((topic_filter, value))
        del node.values[value]
        self.version += 1
        self._length -= 1
        for parent, level in reversed(path):
            child = parent.children[level]
            if child.values or child.children:
                break
            del parent.children[level]

    def match(self, topic: str) -> list[T]:
        """Returns the values whose filter matches the topic, in the order of their addition.

        A value that was added with several filters appears once for each that matches.
        """
        found: list[tuple[int, T]] = []
        frontier = [self._root]
        wildcards = not is_reserved(topic)
        for level in levels(topic):
            following: list[_Node[T]] = []
            for node in frontier:
                if wildcards:
                    _collect(node.children.get(ALL_LEVELS), found)
                    if (child := node.children.get(ONE_LEVEL)) is not None:
                        following.append(child)
                if (child := node.children.get(level)) is not None:
                    following.append(child)
            frontier = following
            # Only the first level of a reserved topic is closed to wildcards.
            wildcards = True
        for node in frontier:
            _collect(node, found)
            # `a/#` matches its parent `a` too.
            _collect(node.children.get(ALL_LEVELS), found)
        found.sort(key=_place)
        return [value for _, value in found]


def _collect(node: _Node[T] | None, found: list[tuple[int, T]]) -> None:
    if node is not None:
        found.extend((place, value) for value, place in node.values.items())


def _place(entry: tuple[int, Hashable]) -> int:
    return entry[0]
