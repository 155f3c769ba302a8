"""Which of a model's arrays are reduced together, so that its gradients cost a few calls in place of hundreds.

After S. Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", VLDB 2020, section 3.2:
buckets are filled in the reverse order of the arrays, because the backward pass finishes the gradients of the last
layers first, and so the first bucket is complete, and can be under way, while the others are still being computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def plan_buckets(arrays: Sequence[NDArray[np.generic]], bucket_bytes: int) -> list[list[int]]:
    """Indices of the arrays in each bucket, buckets in the order in which the backward pass completes them."""
    by_dtype: dict[np.dtype[np.generic], list[int]] = {}
    for index in reversed(range(len(arrays))):
        by_dtype.setdefault(arrays[index].dtype, []).append(index)
    planned = [filled for indices in by_dtype.values() for filled in _fill(arrays, indices, bucket_bytes)]
    # Each bucket is complete with its last entry, the array that the backward pass reaches last.
    return sorted(planned, key=lambda indices: -indices[-1])


def _fill(arrays: Sequence[NDArray[np.generic]], indices: Sequence[int], bucket_bytes: int) -> list[list[int]]:
    buckets: list[list[int]] = [[]]
    room_bytes = bucket_bytes
    for index in indices:
        if buckets[-1] and arrays[index].nbytes > room_bytes:
            buckets.append([])
            room_bytes = bucket_bytes
        buckets[-1].append(index)
        room_bytes -= arrays[index].nbytes
    return buckets
