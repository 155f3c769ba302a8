"""The parameter server as a process. It serves until it is told to stop."""

from __future__ import annotations

import argparse
import signal
import threading

import clients
from examples.training_loop.job import STALENESS, Job
from examples.training_loop.model import make_model
from examples.training_loop.step import optimizer_of


def main() -> None:
    """Runs the server until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True, help="the broker's address")
    parser.add_argument("--job", required=True, type=Job.from_json, help="what to train, as JSON")
    arguments = parser.parse_args()
    job: Job = arguments.job
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    model = make_model(job)
    with (
        clients.connect(arguments.url, name=f"{job.mode}.server") as bus,
        clients.ParameterServer(
            bus, model.parameters, optimizer_of(job), group=job.mode, staleness=STALENESS[job.mode]
        ),
    ):
        stop.wait()


if __name__ == "__main__":
    main()
