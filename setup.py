"""Compiles the modules that have a .pxd file, with their types, beside them (docs/decisions/0008-compiled.md).

They are plain Python too: without a compiler they stay as they are, and slower. The C files beside a header that a .pxd
file names are linked with the module, if their names begin with the header's: with kernels.h, kernels.c and its parts.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HOT = [path.with_suffix(".py") for folder in ("broker", "clients") for path in sorted(Path(folder).rglob("*.pxd"))]

HEADERS = [str(path) for path in sorted(Path("broker").rglob("*.h"))]

# Products are rounded before they are added, on every processor: results do not depend on where they were computed.
FLAGS = ["-O3", "-ffp-contract=off"]


class BuildApart(build_ext):
    """Builds each module in a folder of its own: two may link the same C file, and be built at once."""

    def build_extension(self, ext: Extension) -> None:
        apart = copy.copy(self)
        apart.build_temp = str(Path(self.build_temp) / ext.name)
        build_ext.build_extension(apart, ext)


def linked(typed: Path) -> list[str]:
    """The C files that a .pxd file's module is linked with."""
    headers = [Path(name) for name in re.findall(r'extern from "(.+)\.h"', typed.read_text(encoding="utf-8"))]
    return [
        str(file)
        for header in headers
        for file in sorted(header.parent.glob(f"{header.name}*.c"))
        if not file.with_suffix(".pxd").exists()
    ]


def extensions() -> list[Extension]:
    """What is to be compiled; nothing without Cython."""
    try:
        from Cython.Build import cythonize
    except ImportError:
        print("tensorbus: without Cython nothing is compiled, and small messages are slower")
        return []
    modules = [
        Extension(
            ".".join(path.with_suffix("").parts),
            [str(path), *linked(path.with_suffix(".pxd"))],
            include_dirs=["."],
            depends=HEADERS,
            extra_compile_args=FLAGS,
        )
        for path in HOT
    ]
    # The types of the .pxd files count, not the annotations, which are meant for people and mypy.
    made = cythonize(modules, compiler_directives={"language_level": 3, "annotation_typing": False}, quiet=True)
    for module in made:
        # Where it cannot be compiled, the rest is installed all the same. Said here, as cythonize forgets it.
        module.optional = True
    return made


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildApart})
