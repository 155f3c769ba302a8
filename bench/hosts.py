"""All-reduce between hosts, beside what others do over the same wires, and what the wires carry.

    python -m bench.hosts                                       2 and 4 hosts, 1 and 10 Gbit/s, 64 MiB
    python -m bench.hosts --hosts 4 --rates 10gbit --bytes 8,65536 --repeats 300 --schedules auto
    python -m bench.hosts --hosts 2 --per-host 2 --schedules hierarchical,ring

Hosts are network namespaces of this machine with one rank each, or several, which lie on the hosts in turn; cables of a
given rate over a bridge (network.py), and the broker on the first one. Sum of float32 in place, after a barrier each;
the times are rank 0's, from its call to its return. The contestants take turns, `--rounds` times, each time in new
processes; the words are those of nccl-tests:

    algbw   bytes of the array, by the median time
    busbw   algbw times 2 (n - 1) / n: what has to leave each of n ranks, whatever the algorithm
    wire    busbw as a part of the cable's rate
    limit   the bare wire's median, as a part of this one (host_ranks.py): 1 is as fast as nothing but bytes
    cpu     processor time of rank 0's process for each all-reduce
    sent    what host 0's eth0 has sent for each all-reduce, as a part of the array; heads are in it

The last lines say how many times as long as tensorbus the others take, by their medians: above 1 it is ahead.

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from bench import host_ranks
from bench.host_ranks import Told
from bench.network import Network, Unavailable

RATES: Final = {"1gbit": 125e6, "10gbit": 1250e6}
"""Bytes in a second."""
PEERS: Final = ("gloo (torch)", "openmpi")
PATIENCE_S: Final = 300.0
MODULE: Final = (sys.executable, "-m", "bench.hosts")


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


def run_wire(network: Network, size_bytes: int, repeats: int) -> Told:
    """Measures what the cables carry."""
    addresses = ",".join(network.address(host) for host in range(network.hosts))
    return _ranks(network, ["--wire", addresses, "--bytes", str(size_bytes), "--repeats", str(repeats)], 1)


def _ranks(network: Network, words: list[str], per_host: int) -> Told:
    ranks = network.hosts * per_host
    module = [*MODULE, *words, "--ranks", str(ranks)]
    commands = [network.command(rank % network.hosts, *module, "--rank", str(rank)) for rank in range(ranks)]
    with started(commands, GLOO_SOCKET_IFNAME="eth0") as processes:
        text, errors = processes[0].communicate(timeout=PATIENCE_S)
        if not text:
            raise RuntimeError(f"rank 0 ended with {processes[0].returncode}: {errors[-500:]}")
        return Told(**json.loads(text))


def run_mpi(network: Network, size_bytes: int, repeats: int) -> Told:
    """Measures OpenMPI over TCP. Its daemons reach the other namespaces by a command in the place of ssh."""
    with tempfile.TemporaryDirectory() as folder:
        agent = Path(folder) / "agent"
        names = ((network.address(host), network.namespace(host)) for host in range(network.hosts))
        cases = "".join(f"{address}) name={name};; " for address, name in names)
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
        module = [*MODULE, "--mpi", "--bytes", str(size_bytes), "--repeats", str(repeats)]
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


def row(name: str, hosts: int, per_host: int, rate: str, size_bytes: int, found: Told, limit_s: float = 0.0) -> str:
    """One line of figures; `limit_s` is what the bare wire has taken."""
    median_s, ranks = statistics.median(found.times_s), hosts * per_host
    algbw = size_bytes / median_s
    busbw = algbw * 2 * (ranks - 1) / ranks
    limit = f"{limit_s / median_s:5.2f}" if limit_s else "    -"
    return (
        f"{name:<24} {hosts:>2} hosts  {ranks:>2} ranks  {rate:>6}  {size_bytes:>10} bytes"
        f"  median {median_s * 1e3:9.3f} ms  best {min(found.times_s) * 1e3:9.3f} ms  algbw {algbw / 1e9:6.3f} GB/s"
        f"  busbw {busbw / 1e9:6.3f} GB/s  wire {busbw / RATES[rate]:5.2f}  limit {limit}"
        f"  cpu {found.processor_s * 1e3:8.3f} ms  sent {found.sent_bytes / size_bytes:5.2f}"
    )


def ahead(name: str, found: dict[str, list[Told]]) -> str:
    """How many times the median time of one contestant each peer takes."""
    own_s = statistics.median(joined(found[name]).times_s)
    others = ", ".join(
        f"{peer} {statistics.median(joined(found[peer]).times_s) / own_s:.2f}" for peer in PEERS if peer in found
    )
    return f"{name} is ahead of {others or 'nobody that is here'}"


def joined(rounds: list[Told]) -> Told:
    """What several rounds have found, as one."""
    times_s = [each for found in rounds for each in found.times_s]
    processor_s = statistics.median(found.processor_s for found in rounds)
    return replace(rounds[-1], times_s=times_s, processor_s=processor_s)


def measure(
    hosts: int, per_host: int, rate: str, size_bytes: int, repeats: int, schedules: list[str], rounds: int = 1
) -> None:
    """Prints a line for each system; they take turns."""
    runs: dict[str, Callable[[Network], Told]] = {}
    for schedule in schedules:
        runs[f"tensorbus {schedule}"] = lambda network, schedule=schedule: run_tensorbus(  # type: ignore[misc]
            network, size_bytes, repeats, schedule, per_host
        )
    absent = missing()
    if "gloo" not in absent:
        runs["gloo (torch)"] = lambda network: run_gloo(network, size_bytes, repeats, per_host)
    if "openmpi" not in absent and per_host == 1:
        runs["openmpi"] = lambda network: run_mpi(network, size_bytes, repeats)
    if per_host == 1:
        runs["the bare wire"] = lambda network: run_wire(network, size_bytes, repeats)
    found: dict[str, list[Told]] = {name: [] for name in runs}
    with Network(hosts, rate) as network:
        for _ in range(rounds):
            for name, run in runs.items():
                found[name].append(run(network))
    limit_s = statistics.median(joined(found["the bare wire"]).times_s) if "the bare wire" in found else 0.0
    for name, told in found.items():
        used = told[-1].schedule
        title = name if not name.startswith("tensorbus") or name.endswith(used) else f"{name} ({used})"
        print(row(title, hosts, per_host, rate, size_bytes, joined(told), limit_s), flush=True)
    for name in found:
        if name.startswith("tensorbus"):
            print(ahead(name, found), flush=True)


def be_a_rank(asked: argparse.Namespace) -> bool:
    """Whether this process is one rank of something; then it has been that."""
    size_bytes, place = int(asked.bytes) if asked.bytes.isdigit() else 0, (asked.rank, asked.ranks)
    if asked.url:
        host_ranks.of_tensorbus(asked.url, place, size_bytes, asked.repeats, asked.schedules)
    elif asked.mpi:
        host_ranks.of_mpi(size_bytes, asked.repeats)
    elif asked.gloo:
        host_ranks.of_gloo(asked.gloo, place, size_bytes, asked.repeats)
    elif asked.wire:
        host_ranks.of_wire(asked.wire.split(","), place, size_bytes, asked.repeats)
    else:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", default="2,4")
    parser.add_argument("--per-host", type=int, default=1, help="ranks on each host; OpenMPI and the wire are for one")
    parser.add_argument("--rates", default="1gbit,10gbit")
    parser.add_argument("--bytes", default=str(64 << 20))
    parser.add_argument("--repeats", type=int, default=5, help="all-reduces of each contestant in each round")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contestant")
    parser.add_argument("--schedules", default="ring,star")
    for name in ("--url", "--gloo", "--wire"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--mpi", action="store_true", help=argparse.SUPPRESS)
    for name in ("--rank", "--ranks"):
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if be_a_rank(asked):
        return
    for name, reason in missing().items():
        print(f"{name} is missing: {reason}")
    try:
        for hosts in asked.hosts.split(","):
            for rate in asked.rates.split(","):
                for size in asked.bytes.split(","):
                    schedules = asked.schedules.split(",")
                    measure(int(hosts), asked.per_host, rate, int(size), asked.repeats, schedules, asked.rounds)
    except Unavailable as problem:
        sys.exit(str(problem))
    except KeyboardInterrupt:
        sys.exit("interrupted")


if __name__ == "__main__":
    main()
