"""Compiles the modules that have a .pxd file, with their types, beside them (docs/decisions/0008-compiled.md).

They are plain Python too: without a compiler they stay as they are, and slower.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import Extension, setup

HOT = [path.with_suffix(".py") for folder in ("broker", "clients") for path in sorted(Path(folder).rglob("*.pxd"))]

GENERATED = {path.with_suffix(".c") for path in HOT}

# What is written in C; a module names the files that belong to it in its first line.
WRITTEN = [
    str(path) for path in sorted([*Path("broker").rglob("*.h"), *Path("broker").rglob("*.c")]) if path not in GENERATED
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
            [str(path)],
            include_dirs=["."],
            depends=WRITTEN,
            extra_compile_args=["-O3"],
            optional=True,
        )
        for path in HOT
    ]
    # The types of the .pxd files count, not the annotations, which are meant for people and mypy.
    return cythonize(modules, compiler_directives={"language_level": 3, "annotation_typing": False}, quiet=True)


setup(ext_modules=extensions())
