"""The kernels on 64-bit ARM, in an emulator, against numpy here: bit for bit."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from bench.kernels import DTYPES, OPS
from broker.collectives import encoding
from broker.collectives.claims import INT8_BLOCKS, ITEM_BYTES, ReduceOp, op_problem
from tests.collectives.test_kernels import expected, filled, one_nan
from tests.conftest import ROOT

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
MISSING = [program for program in (COMPILER, EMULATOR) if shutil.which(program) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"{' and '.join(MISSING)} missing: apt-get install gcc-aarch64-linux-gnu qemu-user"
)
PAIRS = [(op, dtype) for op in OPS for dtype in DTYPES if op_problem(ReduceOp(op), dtype) is None]
SIZES = [0, 1, 7, 61, 1000]
PATIENCE_S = 200.0
"""As long as a compiler or an emulator may take where others have the processors too."""
ENCODE, DECODE = -1, -2


class Machine:
    """A program for ARM that runs kernels; requests are collected and sent together."""

    def __init__(self, program: Path) -> None:
        self._program = program
        self._requests: list[bytes] = []
        self._lengths: list[int] = []

    def ask(
        self, op: int, dtype: str, sources: list[bytes], elements: int, result_bytes: int, divisor: int = 1
    ) -> None:
        """What comes of it is in `answers` at the same place."""
        numbers = (op, DTYPES[dtype], len(sources), elements, divisor, len(sources[0]), result_bytes)
        self._requests += [np.array(numbers, np.int32).tobytes(), *sources]
        self._lengths.append(result_bytes + (len(sources[0]) if op == ENCODE else 0))

    def answers(self) -> list[bytes]:
        """Of all requests, in their order."""
        done = subprocess.run(
            [EMULATOR, str(self._program)],
            input=b"".join(self._requests),
            capture_output=True,
            check=True,
            timeout=PATIENCE_S,
        )
        assert done.stderr == b"neon"
        ends = np.cumsum([0, *self._lengths])
        assert len(done.stdout) == ends[-1]
        return [done.stdout[start:end] for start, end in zip(ends, ends[1:], strict=False)]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("arm") / "one_kernel"
    sources = ["tests/collectives/one_kernel.c", "broker/collectives/kernels.c", "broker/collectives/kernels_plain.c"]
    flags = ["-static", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-I."]
    subprocess.run([COMPILER, *flags, *sources, "-o", str(built)], cwd=ROOT, check=True, timeout=PATIENCE_S)
    return built


def test_every_kernel_gives_the_bits_of_numpy(program: Path) -> None:
    machine, wanted = Machine(program), []
    for number, (op, dtype) in enumerate(PAIRS):
        generator = np.random.default_rng(number)
        for count, elements in zip((1, 2, 3, 5, 9), SIZES, strict=True):
            size = elements * ITEM_BYTES[dtype]
            sources = [filled(dtype, size, 0, generator, special=count % 2 == 1) for _ in range(count)]
            divisor = count if op == "mean" else 1
            machine.ask(OPS[op], dtype, [each.tobytes() for each in sources], elements, size, divisor)
            wanted.append((op, dtype, count, expected(op, dtype, sources)))
    for (op, dtype, count, result), answer in zip(wanted, machine.answers(), strict=True):
        assert one_nan(answer, dtype) == result, (op, dtype, count)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", INT8_BLOCKS])
def test_encoding_gives_the_bits_that_it_gives_here(program: Path, dtype: str) -> None:
    machine, wanted = Machine(program), []
    for elements in SIZES:
        generator = np.random.default_rng(elements)
        array, carried = (generator.normal(size=elements).astype(np.float32) for _ in range(2))
        array[::13] *= 1e9
        array[5::97] = np.inf
        lost, back = carried.copy(), np.empty_like(array)
        encoded = encoding.encode(dtype, array, lost, lost)
        encoding.decode(dtype, encoded, back)
        machine.ask(ENCODE, dtype, [array.tobytes(), carried.tobytes()], elements, encoded.nbytes)
        wanted.append(encoded.tobytes() + lost.tobytes())
        if elements:
            machine.ask(DECODE, dtype, [encoded.tobytes()], elements, back.nbytes)
            wanted.append(back.tobytes())
    floats = "float32" if dtype == INT8_BLOCKS else dtype
    for result, answer in zip(wanted, machine.answers(), strict=True):
        assert one_nan(answer, floats) == one_nan(result, floats)
