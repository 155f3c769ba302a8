"""Handwritten digits, and the order in which samples are used."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

TEST_SHARE = 0.2


def digits_file() -> Path:
    """Where scikit-learn keeps its digits. Importing it to be told so takes each process two seconds.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the digits are in scikit-learn: pip install 'tensorbus[demo]'", name="sklearn")
    return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"


@cache
def table() -> npt.NDArray[np.float64]:
    """A line for each image: its pixels, and its digit. It is read once, by whoever trains several models."""
    rows = np.loadtxt(digits_file(), delimiter=",")
    rows.flags.writeable = False
    return rows


@dataclass(frozen=True, slots=True)
class Digits:
    """1,797 images of 8 x 8 pixels, scaled to 0..1, as vectors of 64, and the digits that they show.

    From E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
    as scikit-learn has them in its package.
    """

    train_images: npt.NDArray[np.float64]
    train_labels: npt.NDArray[np.int64]
    test_images: npt.NDArray[np.float64]
    test_labels: npt.NDArray[np.int64]

    @classmethod
    def load(cls, seed: int) -> Self:
        """Splits the images at random, for a seed always in the same way."""
        rows = table()
        images, labels = rows[:, :-1] / 16.0, rows[:, -1].astype(np.int64)
        order = np.random.default_rng(seed).permutation(len(images))
        tests = int(len(images) * TEST_SHARE)
        test, train = order[:tests], order[tests:]
        return cls(images[train], labels[train], images[test], labels[test])


class Batches:
    """Which samples each step uses: every epoch all of them, in its own order, but for an incomplete last batch."""

    def __init__(self, samples: int, batch_size: int, seed: int) -> None:
        self.steps_per_epoch = samples // batch_size
        self._samples = samples
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = -1
        self._order: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def shard(self, step: int, position: int, count: int) -> npt.NDArray[np.int64]:
        """The samples of one of `count` trainers in a step; those of all positions together are the whole batch."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self._seed, epoch]).permutation(self._samples)
        whole = self._order[batch * self._batch_size : (batch + 1) * self._batch_size]
        return whole[position::count]
