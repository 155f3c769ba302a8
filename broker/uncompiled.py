"""Stands in for the package `cython` where that is not installed: nothing is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

compiled: Final = False


def freelist(size: int) -> Callable[[T], T]:
    """Compiled, so many objects of a class that are gone lie ready to be used again."""
    return cclass


def no_gc(made: T) -> T:
    """Compiled, the garbage collector does not look at objects of a class."""
    return made


def trashcan(guarded: bool) -> Callable[[T], T]:
    """Compiled, objects of a class may refer to each other in a chain of any length, which ends without a call within a
    call for each of them."""
    return cclass


def cclass(made: T) -> T:
    """Compiled, a class has the types of its .pxd file; what it is to be beside that is asked for above this."""
    return made


def locals(**types: str) -> Callable[[T], T]:
    """Compiled, arguments of a function have these types, which its caller does not see in a .pxd file."""
    return cclass
