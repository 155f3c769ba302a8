"""Compiles the modules that have a .pxd file, with their types, beside them (docs/decisions/0008-compiled.md).

They are plain Python too: without a compiler they stay as they are, and slower. The C files beside a header that a .pxd
file names are linked with the module, if their names begin with the header's: with kernels.h, kernels.c and its parts.
"""

from __future__ import annotations

import copy
import os
import re
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HOT = [path.with_suffix(".py") for folder in ("broker", "clients") for path in sorted(Path(folder).rglob("*.pxd"))]

# Products are rounded before they are added, on every processor: results do not depend on where they were computed.
# Without debug symbols and, where Cython writes the C, at -O2: a third of the time to build, and of the code to run.
FLAGS = ["-g0", "-ffp-contract=off"]


AT_ONCE = os.cpu_count() or 1
"""How many modules are translated, and how many compiled, at a time."""


class BuildApart(build_ext):
    """Builds each module in a folder of its own: two may link the same C file, and be built at once."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # Not as an option of setup(): an editable install forgets those.
        self.parallel = self.parallel or AT_ONCE

    def build_extension(self, ext: Extension) -> None:
        apart = copy.copy(self)
        apart.build_temp = str(Path(self.build_temp) / ext.name)
        build_ext.build_extension(apart, ext)


def check_machine(byte_order: str = sys.byteorder) -> None:
    """Refuses to build where numbers in shared memory and in arrays would be taken for other ones.

    Raises:
        SystemExit: the machine has the byte order that nothing here was written for.
    """
    if byte_order != "little":
        raise SystemExit(f"tensorbus: this machine is {byte_order}-endian, and tensorbus takes a little-endian one")


def named_headers(typed: Path) -> list[Path]:
    """The headers that a .pxd file names, without their suffix."""
    return [Path(name) for name in re.findall(r'extern from "(.+)\.h"', typed.read_text(encoding="utf-8"))]


def linked(typed: Path) -> list[str]:
    """The C files that a .pxd file's module is linked with."""
    return [
        str(file)
        for header in named_headers(typed)
        for file in sorted(header.parent.glob(f"{header.name}*.c"))
        if not file.with_suffix(".pxd").exists()
    ]


def headers(typed: Path) -> list[str]:
    """What a .pxd file's module may depend on: all that lie beside one that it, or the C linked with it, includes."""
    folders = {header.parent for header in named_headers(typed)}
    if folders:
        # What lies there is for all of them.
        folders.add(Path("broker"))
    for file in linked(typed):
        folders.update(Path(name).parent for name in re.findall(r'#include "(.+/.+)"', Path(file).read_text("utf-8")))
    return [str(path) for folder in sorted(folders) for path in sorted(folder.glob("*.h"))]


def extensions() -> list[Extension]:
    """What is to be compiled; nothing without Cython."""
    try:
        from Cython.Build import cythonize
    except ImportError:
        print("tensorbus: without Cython nothing is compiled, and small messages are slower")
        return []
    modules = []
    for path in HOT:
        by_hand = linked(path.with_suffix(".pxd"))
        modules.append(
            Extension(
                ".".join(path.with_suffix("").parts),
                [str(path), *by_hand],
                include_dirs=["."],
                depends=headers(path.with_suffix(".pxd")),
                extra_compile_args=[*FLAGS, "-O3" if by_hand else "-O2"],
            )
        )
    # The types of the .pxd files count, not the annotations, which are meant for people and mypy.
    # Nothing compiled is pickled or copied: a second one of what owns memory would give it back a second time.
    directives = {"language_level": 3, "annotation_typing": False, "auto_pickle": False}
    made = cythonize(modules, nthreads=AT_ONCE, compiler_directives=directives, quiet=True)
    for module in made:
        # Where it cannot be compiled, the rest is installed all the same. Said here, as cythonize forgets it.
        module.optional = True
    return made


# A process that translates may import this file, and has nothing to set up.
if __name__ == "__main__":
    check_machine()
    setup(ext_modules=extensions(), cmdclass={"build_ext": BuildApart})
