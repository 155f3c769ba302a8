"""All-reduce between hosts, beside what others do over the same wires.

    python -m bench.hosts --hosts 2,4 --rates 1gbit,10gbit --bytes 67108864
    python -m bench.hosts --hosts 2 --per-host 2 --schedules hierarchical,ring

Hosts are network namespaces of this machine with one rank each, or several, which lie on the hosts in turn; cables of a
given rate over a bridge (network.py), and the broker on the first one. Sum of float32 in place, after a barrier each;
the times are rank 0's, from its call to its return, and the words those of nccl-tests:

    algbw   bytes of the array, by the median time
    busbw   algbw times 2 (n - 1) / n: what has to leave each of n ranks, whatever the algorithm
    wire    busbw as a part of the cable's rate
    sent    what host 0's eth0 has sent for each all-reduce, as a part of the array; heads are in it

All namespaces share this machine's processors, so what is far below 1 may be theirs and not the algorithm's.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from bench.network import Network, Unavailable

RATES: Final = {"1gbit": 125e6, "10gbit": 1250e6}
"""Bytes in a second."""
PATIENCE_S: Final = 300.0
WARM: Final = 2


def rank_of_tensorbus(url: str, rank: int, ranks: int, size_bytes: int, repeats: int, schedule: str) -> None:
    """One rank; rank 0 prints the schedule that is used and its times."""
    import clients

    with clients.connect(url, name=f"rank-{rank}") as bus:
        group = bus.group("hosts", world_size=ranks, rank=rank, schedule=schedule)
        group.barrier()
        before_bytes = sent_bytes()
        times_s = time_all(group.barrier, group.all_reduce, rank, ranks, size_bytes, repeats)
        group.barrier()
        if not rank:
            print(told(group.schedule, times_s, before_bytes), flush=True)
        group.barrier()
        group.leave()


def sent_bytes() -> int:
    """What eth0 of this process's host has sent."""
    lines = Path("/proc/self/net/dev").read_text(encoding="utf-8").splitlines()
    counters = next(line.partition(":")[2] for line in lines if line.strip().startswith("eth0:"))
    return int(counters.split()[8])


def told(schedule: str, times_s: list[float], before_bytes: int) -> str:
    """What rank 0 prints."""
    each = (sent_bytes() - before_bytes) / (len(times_s) + WARM)
    return json.dumps({"schedule": schedule, "times_s": times_s, "sent_bytes": each})


def rank_of_gloo(address: str, rank: int, ranks: int, size_bytes: int, repeats: int) -> None:
    """One rank of torch.distributed over Gloo; rank 0 prints its times."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"tcp://{address}:29400", rank=rank, world_size=ranks)

    def reduce(array: np.ndarray[tuple[int], np.dtype[np.float32]]) -> None:
        dist.all_reduce(torch.from_numpy(array))

    dist.barrier()
    before_bytes = sent_bytes()
    times_s = time_all(dist.barrier, reduce, rank, ranks, size_bytes, repeats)
    dist.barrier()
    if not rank:
        print(told("gloo", times_s, before_bytes), flush=True)
    dist.destroy_process_group()


def rank_of_mpi(size_bytes: int, repeats: int) -> None:
    """One rank of OpenMPI; rank 0 prints its times."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD

    def reduce(array: np.ndarray[tuple[int], np.dtype[np.float32]]) -> None:
        world.Allreduce(MPI.IN_PLACE, array)

    world.Barrier()
    before_bytes = sent_bytes()
    times_s = time_all(world.Barrier, reduce, world.rank, world.size, size_bytes, repeats)
    world.Barrier()
    if not world.rank:
        print(told("mpi", times_s, before_bytes), flush=True)


def time_all(
    barrier: Callable[[], object],
    reduce: Callable[[np.ndarray[tuple[int], np.dtype[np.float32]]], object],
    rank: int,
    ranks: int,
    size_bytes: int,
    repeats: int,
) -> list[float]:
    """The times of all repeats but the first ones, in seconds."""
    array, times_s = np.empty(size_bytes // 4, np.float32), []
    for _ in range(repeats + WARM):
        array.fill(rank + 1)
        barrier()
        called_ns = time.monotonic_ns()
        reduce(array)
        times_s.append((time.monotonic_ns() - called_ns) / 1e9)
        if not (array == ranks * (ranks + 1) / 2).all():
            raise RuntimeError(f"all-reduce of {size_bytes} bytes gave {array}")
    return times_s[WARM:]


@contextmanager
def started(commands: list[list[str]], **variables: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes, which are ended at the end."""
    environment = os.environ | variables
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for command in commands
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                assert stream is not None
                stream.close()


@dataclass(frozen=True)
class Told:
    """What rank 0 has printed.

    Attributes:
        schedule: that was used.
        times_s: of each all-reduce.
        sent_bytes: by its host, for each all-reduce.
    """

    schedule: str
    times_s: list[float]
    sent_bytes: float


def run_tensorbus(network: Network, size_bytes: int, repeats: int, schedule: str, per_host: int = 1) -> Told:
    """Measures tensorbus."""
    address = network.address(0)
    serve = [sys.executable, "-m", "broker", "serve", "--listen", f"tcp://{address}:0", "--admin", "off", "--insecure"]
    with started([network.command(0, *serve)]) as (broker,):
        assert broker.stdout is not None
        url = broker.stdout.readline().removeprefix("listening on ").strip()
        words = ["--bytes", str(size_bytes), "--repeats", str(repeats), "--schedules", schedule]
        return _ranks(network, ["--url", url, *words], per_host)


def run_gloo(network: Network, size_bytes: int, repeats: int, per_host: int = 1) -> Told:
    """Measures torch.distributed."""
    words = ["--gloo", network.address(0), "--bytes", str(size_bytes), "--repeats", str(repeats)]
    return _ranks(network, words, per_host)


def _ranks(network: Network, words: list[str], per_host: int) -> Told:
    ranks = network.hosts * per_host
    module = [sys.executable, "-m", "bench.hosts", *words, "--ranks", str(ranks)]
    commands = [network.command(rank % network.hosts, *module, "--rank", str(rank)) for rank in range(ranks)]
    with started(commands, GLOO_SOCKET_IFNAME="eth0") as processes:
        text, errors = processes[0].communicate(timeout=PATIENCE_S)
        if not text:
            raise RuntimeError(f"rank 0 ended with {processes[0].returncode}: {errors[-500:]}")
        return Told(**json.loads(text))


def run_mpi(network: Network, size_bytes: int, repeats: int, folder: Path) -> Told:
    """Measures OpenMPI over TCP. Its daemons reach the other namespaces by a command in the place of ssh."""
    agent = folder / "agent"
    cases = "".join(f"{network.address(host)}) name={network.namespace(host)};; " for host in range(network.hosts))
    run_there = 'exec ip netns exec $name unshare --uts sh -c "hostname $name; $*"'
    agent.write_text(f"#!/bin/sh\nhost=$1; shift\ncase $host in {cases} esac\n{run_there}\n", encoding="utf-8")
    agent.chmod(0o755)
    hosts = ",".join(network.address(host) for host in range(network.hosts))
    options = {
        "plm_rsh_agent": str(agent), "btl": "tcp,self", "btl_tcp_if_include": "10.77.0.0/24",
        "oob_tcp_if_include": "10.77.0.0/24", "pml": "ob1", "mpi_yield_when_idle": "1",
    }  # fmt: skip
    words = [word for name, value in options.items() for word in ("--mca", name, value)]
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", str(network.hosts), "-H", hosts, *words]
    module = [sys.executable, "-m", "bench.hosts", "--mpi", "--bytes", str(size_bytes), "--repeats", str(repeats)]
    done = subprocess.run(
        network.command(0, *command, "-x", "PYTHONPATH", *module),
        capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=_environment(),
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"mpirun ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return Told(**json.loads(done.stdout))


def _environment() -> dict[str, str]:
    """Remote daemons begin in another folder, and have to find this package all the same."""
    path = os.pathsep.join(filter(None, (str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path}


def missing() -> dict[str, str]:
    """Peers that cannot take part, and why."""
    absent = {}
    if importlib.util.find_spec("torch") is None:
        absent["gloo"] = "the package torch is not installed"
    if not shutil.which("mpirun"):
        absent["openmpi"] = "mpirun is not installed"
    elif importlib.util.find_spec("mpi4py") is None:
        absent["openmpi"] = "the package mpi4py is not installed"
    return absent


def row(name: str, hosts: int, per_host: int, rate: str, size_bytes: int, found: Told) -> str:
    """One line of figures."""
    median_s, ranks = statistics.median(found.times_s), hosts * per_host
    algbw = size_bytes / median_s
    busbw = algbw * 2 * (ranks - 1) / ranks
    return (
        f"{name:<24} {hosts:>2} hosts  {ranks:>2} ranks  {rate:>6}  {size_bytes:>10} bytes"
        f"  median {median_s * 1e3:9.2f} ms  best {min(found.times_s) * 1e3:9.2f} ms  algbw {algbw / 1e9:6.3f} GB/s"
        f"  busbw {busbw / 1e9:6.3f} GB/s  wire {busbw / RATES[rate]:5.2f}  sent {found.sent_bytes / size_bytes:5.2f}"
    )


def measure(hosts: int, per_host: int, rate: str, size_bytes: int, repeats: int, schedules: list[str]) -> None:
    """Prints a line for each system."""
    absent = missing()
    with Network(hosts, rate) as network, tempfile.TemporaryDirectory() as folder:
        for schedule in schedules:
            found = run_tensorbus(network, size_bytes, repeats, schedule, per_host)
            name = f"tensorbus {schedule}" + (f" ({found.schedule})" if found.schedule != schedule else "")
            print(row(name, hosts, per_host, rate, size_bytes, found), flush=True)
        if "gloo" not in absent:
            found = run_gloo(network, size_bytes, repeats, per_host)
            print(row("gloo (torch)", hosts, per_host, rate, size_bytes, found), flush=True)
        if "openmpi" not in absent and per_host == 1:
            found = run_mpi(network, size_bytes, repeats, Path(folder))
            print(row("openmpi", hosts, per_host, rate, size_bytes, found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", default="2,4")
    parser.add_argument("--per-host", type=int, default=1, help="ranks on each host; OpenMPI is for one")
    parser.add_argument("--rates", default="1gbit,10gbit")
    parser.add_argument("--bytes", default=str(64 << 20))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--schedules", default="ring,star")
    for name in ("--url", "--gloo"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--mpi", action="store_true", help=argparse.SUPPRESS)
    for name in ("--rank", "--ranks"):
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.url:
        rank_of_tensorbus(asked.url, asked.rank, asked.ranks, int(asked.bytes), asked.repeats, asked.schedules)
    elif asked.mpi:
        rank_of_mpi(int(asked.bytes), asked.repeats)
    elif asked.gloo:
        rank_of_gloo(asked.gloo, asked.rank, asked.ranks, int(asked.bytes), asked.repeats)
    else:
        for name, reason in missing().items():
            print(f"{name} is missing: {reason}")
        try:
            for hosts in asked.hosts.split(","):
                for rate in asked.rates.split(","):
                    for size in asked.bytes.split(","):
                        schedules = asked.schedules.split(",")
                        measure(int(hosts), asked.per_host, rate, int(size), asked.repeats, schedules)
        except Unavailable as problem:
            sys.exit(str(problem))


if __name__ == "__main__":
    main()
