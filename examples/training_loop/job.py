"""What the processes of one training run have to agree on. It travels to them as JSON on their command lines."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final, Self

MODES: Final = ("all-reduce", "ps-sync", "ps-async", "quorum", "local-sgd", "diloco")
STALENESS: Final[dict[str, int | None]] = {"ps-sync": 0, "ps-async": None}
"""Of the parameter server, in the modes that have one."""
MODELS: Final = ("digits", "torch")


@dataclass(frozen=True, slots=True)
class Job:
    """One training run.

    Attributes:
        mode: one of MODES; also the name of the trainers' group.
        trainers: how many there are.
        epochs: passes over the training data.
        batch_size: samples of one step, over all trainers.
        learning_rate: of SGD with momentum.
        model: one of MODELS.
        seed: of everything that is random.
        late_s: how much longer than the others the last trainer takes for each step that it computes, in seconds.
        elastic: kills the last trainer on the way, and has another one take its place.
    """

    mode: str = "all-reduce"
    trainers: int = 2
    epochs: int = 25
    batch_size: int = 64
    learning_rate: float = 0.2
    model: str = "digits"
    seed: int = 0
    late_s: float = 0.0
    elastic: bool = False

    def to_json(self) -> str:
        """The job for a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The job that `to_json` gave."""
        return cls(**json.loads(text))

    def trainer_name(self, rank: int | str) -> str:
        """What the client of a rank is called."""
        return f"{self.mode}.trainer-{rank}"

    @property
    def spare_name(self) -> str:
        """What the client is called that takes the place of a trainer that was killed."""
        return self.trainer_name("spare")
