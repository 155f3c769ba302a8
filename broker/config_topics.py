"""Policies of topics in the daemon's TOML file: a table `[[topics]]` for each filter.

    [[topics]]
    filter = "gradients/#"
    ring_bytes = "64MiB"
    overflow = "drop_oldest"

The keys are the settings of `broker/topics/policy.py`. What a table sets, no client can declare otherwise for the same
filter.
"""

from __future__ import annotations

from collections.abc import Callable

from broker.errors import ConfigError, InvalidValue
from broker.limits import DECLARATIONS_MAX
from broker.topics.policy import CONFIGURATION, Declaration, check_declaration


def read_topics(value: object, file: str, size_of: Callable[[object], object]) -> tuple[Declaration, ...]:
    """The declarations of the `topics` of a file.

    Args:
        value: what TOML has made of them.
        file: the file's path, for errors.
        size_of: makes bytes of a text such as "4MiB", and leaves everything else as it is.

    Raises:
        ConfigError: a table has no filter, one that cannot be or that another one has, or a setting that is unknown or
            cannot be.
    """
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        raise ConfigError(f"setting topics ({file})", value, "expected tables, each below a line [[topics]]")
    if len(value) > DECLARATIONS_MAX:
        problem = f"the limit is {DECLARATIONS_MAX}; use filters that match more topics"
        raise ConfigError(f"number of tables [[topics]] in {file}", len(value), problem)
    declarations: dict[str, Declaration] = {}
    for number, table in enumerate(value, start=1):
        settings = {name: size_of(given) if name.endswith("_bytes") else given for name, given in table.items()}
        topic_filter = settings.pop("filter", None)
        where = f"table {number} of [[topics]] in {file}"
        if not isinstance(topic_filter, str):
            raise ConfigError(where, table, 'has no filter; write filter = "gradients/#"')
        try:
            checked = check_declaration(topic_filter, settings)
        except InvalidValue as error:
            raise ConfigError(f"{where}: {error.what}", error.value, error.problem) from error
        if not checked:
            raise ConfigError(where, topic_filter, "sets nothing for its filter")
        if topic_filter in declarations:
            raise ConfigError(where, topic_filter, "another table has the same filter")
        declarations[topic_filter] = Declaration(topic_filter, checked, CONFIGURATION)
    return tuple(declarations.values())


def describe_topics(declarations: tuple[Declaration, ...]) -> list[tuple[str, str]]:
    """For each declaration its filter and its settings, as texts."""
    return [
        (
            f"topics.{declaration.filter}",
            " ".join(f"{name}={_text(value)}" for name, value in declaration.settings.items()),
        )
        for declaration in declarations
    ]


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
