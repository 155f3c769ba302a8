"""How fast contributions are reduced: the compiled kernels, numpy, and copying as a bound.

    python -m bench.kernels                                    # sums, a few minutes
    python -m bench.kernels --op product --dtypes complex64 --counts 8 --sizes 64 --repeats 5

One process and one thread, in memory that was touched before. A rate counts what has to be moved: every source is read
once and the result written once, so `count + 1` arrays; of a copy two. All that a line shows ran in turn in every
repeat, and the median over the repeats is what it says. "streamed" is the kernel with stores past the caches.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
import numpy.typing as npt

from bench.machine import Neighbours, facts
from broker.collectives import reduce
from broker.collectives.claims import ITEM_BYTES, ReduceOp, op_problem

LIBRARY: Final = Path(reduce.__file__)
"""What reduce.py was compiled to, or itself."""
OPS: Final = {str(op): number for number, op in enumerate(ReduceOp)}
DTYPES: Final = {dtype: number for number, dtype in enumerate(ITEM_BYTES)}
LEVELS: Final = ("avx512", "avx2", "neon", "plain")
MIB: Final = 1 << 20
PAGE_BYTES: Final = 4096
PASS_BYTES: Final = 64 * MIB
"""Short arrays are reduced again and again until so many bytes have come out, which is timed as a whole."""

Bytes = npt.NDArray[np.uint8]
Kernel = Callable[[int, ctypes.Array[ctypes.c_void_p], int, int, int, int, ctypes.Array[ctypes.c_void_p] | None], None]
"""A kernel as in broker/collectives/kernels.h."""


class Kernels:
    """The C interface of the kernels, in the library that reduce.py was compiled to.

    Attributes:
        level: of the kernels that are in use.
        levels: of those that this processor can run.
    """

    def __init__(self) -> None:
        functions = ctypes.CDLL(str(LIBRARY))
        signature = (*[ctypes.c_void_p] * 2, ctypes.c_int, ctypes.c_size_t, *[ctypes.c_int] * 2, ctypes.c_void_p)
        self._of = functions.tb_reduce_kernel_of
        self._of.restype = ctypes.CFUNCTYPE(None, *signature)
        functions.tb_kernels_level.restype = ctypes.c_char_p
        self.level = functions.tb_kernels_level().decode()
        self.levels = [level for level in LEVELS if self.of(level, "sum", "uint8") is not None]

    def of(self, level: str, op: str, dtype: str) -> Kernel | None:
        """The kernel of a level, or None where there is none; called, it releases the interpreter's lock."""
        return self.numbered(level, OPS[op], DTYPES[dtype])

    def numbered(self, level: str, op: int, dtype: int) -> Kernel | None:
        """The same by the numbers of kernels.h."""
        return self._of(level.encode(), op, dtype) or None


def pages(size: int) -> Bytes:
    """So many bytes at the beginning of a page, as shared memory begins."""
    memory = np.empty(size + PAGE_BYTES, np.uint8)
    start = -memory.ctypes.data % PAGE_BYTES
    return memory[start : start + size]


def addresses(arrays: Sequence[Bytes]) -> ctypes.Array[ctypes.c_void_p]:
    """Where the arrays lie, as C wants it."""
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


def is_compiled() -> bool:
    """Whether reduce.py was compiled, and so has kernels."""
    return LIBRARY.suffix == ".so"


def reduce_with_numpy() -> Callable[..., None]:
    """`accumulate` of reduce.py as plain Python, though it was compiled."""
    spec = importlib.util.spec_from_file_location("bench.plain_reduce", LIBRARY.with_name("reduce.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    accumulate: Callable[..., None] = module.accumulate
    return accumulate


def seconds(function: Callable[[], object], rounds: int) -> float:
    """How long one call takes, of so many."""
    start = time.perf_counter()
    for _ in range(rounds):
        function()
    return (time.perf_counter() - start) / rounds


def rates(kernels: Kernels, op: str, dtype: str, count: int, size: int, repeats: int) -> dict[str, float]:
    """GB/s of every way, the medians of the repeats."""
    out, *sources = (pages(size) for _ in range(count + 1))
    values = np.random.default_rng(0).normal(size=1 << 16).astype(np.float16).view(np.uint8)
    for source in sources:
        source[:] = np.resize(values, size)
    where, elements = addresses(sources), size // ITEM_BYTES[dtype]
    divisor = count if op == "mean" else 1
    by_numpy, views = reduce_with_numpy(), [source.data for source in sources]
    ways: dict[str, Callable[[], object]] = {"copy": lambda: np.copyto(out, sources[0])}
    ways["numpy"] = lambda: by_numpy(ReduceOp(op), views, dtype, count, out.data)
    for level in kernels.levels:
        kernel = kernels.of(level, op, dtype)
        assert kernel is not None
        for streaming in (0, 1):
            name = f"{level}, streamed" if streaming else level
            ways[name] = lambda kernel=kernel, streaming=streaming: kernel(  # type: ignore[misc]
                out.ctypes.data, where, count, elements, divisor, streaming, None
            )
    for way in ways.values():
        way()
    rounds = max(1, PASS_BYTES // (size * (count + 1)))
    taken = [{name: seconds(way, rounds) for name, way in ways.items()} for _ in range(repeats)]
    return {
        name: (2 if name == "copy" else count + 1) * size / median(times[name] for times in taken) / 1e9
        for name in ways
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints a table in Markdown."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--op", choices=OPS, default="sum")
    parser.add_argument("--dtypes", default=",".join(ITEM_BYTES), help="names, separated by commas")
    parser.add_argument("--counts", default="2,4,8", help="numbers of sources")
    parser.add_argument("--sizes", default="1,64", help="of a source, in MiB")
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args(arguments)
    if not is_compiled():
        parser.error("reduce.py is not compiled: there are no kernels; see docs/decisions/0008-compiled.md")
    kernels = Kernels()
    print(", ".join(f"{name} {value}" for name, value in facts().items()))
    print(f"kernels: {kernels.level} in use; {given.op}, GB/s, medians of {given.repeats} repeats\n")
    ways = ["copy", "numpy", *(name for level in kernels.levels for name in (level, f"{level}, streamed"))]
    print("| dtype, MiB, sources | " + " | ".join(ways) + " | others' cores |")
    print("| --- |" + " --- |" * (len(ways) + 1))
    for size_mib in map(int, given.sizes.split(",")):
        for dtype in given.dtypes.split(","):
            if op_problem(ReduceOp(given.op), dtype):
                continue
            for count in map(int, given.counts.split(",")):
                neighbours = Neighbours(lambda: 0.0)
                found = rates(kernels, given.op, dtype, count, size_mib * MIB, given.repeats)
                cells = " | ".join(f"{found[way]:.1f}" for way in ways)
                print(f"| {dtype}, {size_mib}, {count} | {cells} | {neighbours.cores():.2f} |", flush=True)


if __name__ == "__main__":
    main()
