"""An audit hook for the suite: code of broker or clients that unpickles, or runs a text or bytes, fails there.

Python tells of each such thing (PEP 578) before it happens. Whose code it was is said by the frame from which it came:
what a library does for its own ends, such as dataclasses, which makes methods by exec, is that library's affair. A
compiled module has no frame; of those, tests/test_no_foreign_code.py reads the source. A hook cannot be taken away.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
EVENTS: Final = frozenset({"exec", "compile", "marshal.loads", "marshal.load", "pickle.find_class"})


class RanSomething(RuntimeError):
    """Code of ours has done what it never may."""


def watch(root: Path) -> None:
    """From here on this process, and what is forked from it, watches the packages broker and clients below `root`."""
    ours = tuple(f"{root}/{package}/" for package in ("broker", "clients"))

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if event in EVENTS:
            frame = sys._getframe(1)
            # A module that runs because it is imported is run by the import system, whose frame this then is.
            if frame.f_code.co_filename.startswith(ours):
                place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                raise RanSomething(f"{place}: {event}: nothing that arrives is run, nor unpickled")

    sys.addaudithook(look)
