"""The benchmark of the kernels, run once on little."""

from __future__ import annotations

import pytest

from bench.kernels import Kernels, is_compiled, main


def rows(output: str) -> list[list[str]]:
    """The cells of the printed table."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines() if line.startswith("|")]


@pytest.mark.skipif(not is_compiled(), reason="reduce.py is not compiled, so there are no kernels")
def test_every_way_is_measured_of_every_dtype_that_the_op_has(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--op", "max", "--dtypes", "int8,complex64", "--counts", "2,3", "--sizes", "1", "--repeats", "1"])
    title, _, *found = rows(capsys.readouterr().out)
    levels = [name for level in Kernels().levels for name in (level, f"{level}, streamed")]
    assert title == ["dtype, MiB, sources", "copy", "numpy", *levels, "others' cores"]
    assert [row[0] for row in found] == ["int8, 1, 2", "int8, 1, 3"]
    assert all(float(cell) > 0 for row in found for cell in row[1:-1])


@pytest.mark.skipif(is_compiled(), reason="reduce.py is compiled")
def test_without_kernels_the_benchmark_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    assert "not compiled" in capsys.readouterr().err
