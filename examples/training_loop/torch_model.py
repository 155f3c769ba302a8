"""A character language model in PyTorch, on the text of Python's standard library: the same loops, another model."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from examples.training_loop.model import Floats, Gradients

TEXT_BYTES = 400_000
CONTEXT_CHARACTERS = 16
CHARACTERS = 128
TEST_SHARE = 0.05


def library_text() -> bytes:
    """The beginning of the standard library's modules, in the order of their names."""
    folder = Path(sysconfig.get_path("stdlib"))
    text = b""
    for path in sorted(folder.glob("*.py")):
        text += path.read_bytes()
        if len(text) >= TEXT_BYTES:
            break
    return text[:TEXT_BYTES]


class TextModel:
    """Guesses the next character from the sixteen before it: embeddings, one hidden layer, softmax.

    After Y. Bengio et al., "A Neural Probabilistic Language Model", JMLR 2003, with characters in place of words.

    The arrays of `parameters` are the memory of the torch parameters, so what an optimizer or a broadcast writes into
    them is what the next forward pass uses.
    """

    def __init__(self, seed: int) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        text = np.frombuffer(library_text(), np.uint8) % CHARACTERS
        windows = np.lib.stride_tricks.sliding_window_view(text, CONTEXT_CHARACTERS + 1)
        # One window for each character would make an epoch long; these overlap less.
        windows = windows[:: CONTEXT_CHARACTERS // 2]
        order = np.random.default_rng(seed).permutation(len(windows))
        tests = int(len(windows) * TEST_SHARE)
        self._windows = torch.from_numpy(windows[order].astype(np.int64))
        self._tests = tests
        self.train_samples = len(windows) - tests
        self._network = nn.Sequential(
            nn.Embedding(CHARACTERS, 24),
            nn.Flatten(),
            nn.Linear(24 * CONTEXT_CHARACTERS, 192),
            nn.ReLU(),
            nn.Linear(192, CHARACTERS),
        )
        named = dict(self._network.named_parameters())
        self.parameters: dict[str, Floats] = {name: parameter.detach().numpy() for name, parameter in named.items()}

    def gradients(self, samples: npt.NDArray[np.int64]) -> Gradients:
        """See Model."""
        windows = self._windows[torch.from_numpy(samples + self._tests)]
        logits, labels = self._network(windows[:, :-1]), windows[:, -1]
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        self._network.zero_grad()
        loss.backward()
        arrays: dict[str, Floats] = {
            name: parameter.grad.numpy()
            for name, parameter in self._network.named_parameters()
            if parameter.grad is not None
        }
        return Gradients(arrays, loss.item(), int((logits.argmax(dim=1) == labels).sum()), len(labels))

    def skip(self) -> None:
        """See Model."""

    def accuracy(self) -> float:
        """See Model."""
        windows = self._windows[: self._tests]
        with torch.no_grad():
            guesses = self._network(windows[:, :-1]).argmax(dim=1)
        return float((guesses == windows[:, -1]).float().mean())
