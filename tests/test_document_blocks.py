"""What the documents print can be pasted: their Python runs, their settings are read, their commands are parsed."""

from __future__ import annotations

import asyncio
import itertools
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np
import pytest

import clients
from broker.cli.main import main
from broker.config import load

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "README.md", "bench/README.md", "docs/api.md", "docs/operations.md", "docs/security.md", "docs/recording.md",
)  # fmt: skip
_names = itertools.count()


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


PRINTED = {
    "README.md": [
        "gradients/trainer-0 trainer-0 (1000, 1000) {'step': '1'}",
        "{'layer': 3, 'bias': array([0., 0., 0.])}",
    ],
    "$sys/pressure": ["documented has lost 2 of gradients/trainer-3, 2 in all"],
}
"""By a document, or by what stands in a block."""
PYTHON = [(name, number) for name in DOCUMENTS for number in range(len(blocks(name, "python")))]


class Bus:
    """A client whose subscriptions end after one message, where a document's go on for ever."""

    def __init__(self, bus: clients.Client) -> None:
        self._bus = bus

    def __getattr__(self, name: str) -> object:
        return getattr(self._bus, name)

    @contextmanager
    def _one(self, subscription: clients.Subscription) -> Iterator[object]:
        with subscription:
            yield itertools.islice(subscription, 1)

    def subscribe(self, topic_filter: str, **options: object) -> object:
        if "handler" in options or options.get("replay") == "latest":
            return self._bus.subscribe(topic_filter, **options)  # type: ignore[arg-type]
        # What a document shows of two processes is published here before somebody subscribes.
        return self._one(self._bus.subscribe(topic_filter, **{"replay": "all", **options}))  # type: ignore[arg-type]


def names_of(bus: clients.Client, source: str) -> dict[str, object]:
    """What a block takes for granted."""
    return {
        "np": np,
        "clients": clients,
        "NotNow": TimeoutError,
        "bus": Bus(bus),
        "group": bus.group("documented", world_size=1),
        "compute": lambda *shard: {"weight": np.ones(4)} if shard else np.ones((1024, 1024), "float32"),
        "shard": lambda *place: place,
        "work_on": lambda value: None,
        "gradients": np.ones(4),
        "gradients_of": lambda step: {"weight": np.ones(4)},
        "parameters": np.ones(4) if "quorum=" in source else {"weight": np.ones(4)},
        "optimizer": clients.SGD(0.1, momentum=0.9),
        "behind": 0,
        "n": 64,
        "m": 32,
        "k": 4,
    }


def torch_names() -> dict[str, object]:
    """What a block about PyTorch takes for granted besides."""
    torch = pytest.importorskip("torch", reason="the block takes PyTorch, which is not installed")
    model = torch.nn.Linear(4, 2)
    return {
        "torch": torch,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "batches": [(torch.ones(3, 4), torch.zeros(3, 2))] * 2,
        "loss_of": torch.nn.functional.mse_loss,
    }


def prepare(bus: clients.Client, source: str) -> None:
    """What somebody else does before a block."""
    bus.declare("activations", retain=True)
    if "$sys/pressure" in source:
        with bus.subscribe("gradients/trainer-3", overflow="drop_newest", queue_messages=1):
            for value in range(3):
                bus.publish("gradients/trainer-3", value, ack="accepted")


async def run_awaiting(source: str, names: dict[str, object], address: str) -> None:
    """Runs a block that awaits."""
    body = "".join(f"    {line}\n" for line in source.splitlines())
    exec(compile(f"async def block(group):\n{body}", "block", "exec"), names)
    async with await clients.aio.connect(address) as bus:
        block = names["block"]
        assert callable(block)
        await block(await bus.group("awaited", world_size=1))


@pytest.mark.parametrize(("name", "number"), PYTHON)
def test_each_block_of_python_runs_as_printed(name: str, number: int, capsys: pytest.CaptureFixture[str]) -> None:
    source = blocks(name, "python")[number]
    if "cuda:0" in source:
        pytest.skip("it takes a GPU; tests/gpu has what it shows")
    printed = next((lines for key, lines in PRINTED.items() if key == name or key in source), [])
    address = f"inproc://document-{next(_names)}"
    source = re.sub(r"steps\(\d+\)", "steps(2)", source.replace("tcp://127.0.0.1:4870", address))
    with clients.connect(address, name="documented") as bus:
        prepare(bus, source)
        names = names_of(bus, source) | (torch_names() if "torch." in source else {})
        if "await " in source:
            asyncio.run(run_awaiting(source, names, address))
        else:
            exec(compile(source, "block", "exec"), names)
    assert capsys.readouterr().out.splitlines() == printed


@pytest.mark.parametrize("number", range(len(blocks("docs/operations.md", "toml"))))
def test_each_block_of_settings_is_read(number: int, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(blocks("docs/operations.md", "toml")[number], encoding="utf-8")
    assert set(load({}, {}, file).origins.values()) == {"default", str(file)}


def commands(document: str) -> list[str]:
    """The commands of `tensorbus` that a document has, without those that only show what one looks like."""
    text = (ROOT / document).read_text(encoding="utf-8")
    lines = re.findall(r"^(?:    )?(?:[A-Z_]+=\S+ )*(tensorbus [a-z].*)$", text, re.MULTILINE)
    found = [*lines, *re.findall(r"`(?:[A-Z_]+=\S+ )*(tensorbus [a-z][^`]*)`", text)]
    return [each for each in dict.fromkeys(found) if not re.search(r"\[|\.\.\.|\|| >", each)]


COMMANDS = [(name, command) for name in DOCUMENTS for command in commands(name)]


def parse(words: list[str]) -> str:
    """Parses a command line without running it; returns the command's name. What cannot be parsed raises."""
    command, context = main, click.Context(main)
    while isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"no command {name}"
        command, context = found, click.Context(found, parent=context, info_name=name)
        if not words:
            # The document speaks of the command.
            return name
    command.make_context(name, words, parent=context.parent)
    return name


@pytest.mark.parametrize(("name", "command"), COMMANDS)
def test_each_command_is_one(name: str, command: str) -> None:
    words = shlex.split(command, comments=True)[1:]
    assert parse(list(words)) in words[:2]
