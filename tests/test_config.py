"""The daemon's settings: their sources, their order, and how a bad one is refused."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from broker import limits
from broker.config import Config, LogLevel, describe, environment, load
from broker.errors import ConfigError
from broker.topics.policy import Declaration


def write(directory: Path, text: str) -> Path:
    file = directory / "tensorbus.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_every_setting_has_a_default() -> None:
    loaded = load({}, {"XDG_RUNTIME_DIR": "/run/user/7"}, None)
    assert loaded.config.listen == ("tcp://127.0.0.1:4870", "unix:///run/user/7/tensorbus.sock")
    assert loaded.config.admin == "127.0.0.1:4871"
    assert loaded.config.sessions_max == limits.SESSIONS_MAX
    assert set(loaded.origins.values()) == {"default"}
    assert list(loaded.origins) == [entry.name for entry in dataclasses.fields(Config)]


def test_without_a_runtime_directory_the_socket_is_named_after_the_user() -> None:
    assert load({}, {}, None).config.listen[1] == f"unix:///tmp/tensorbus-{os.getuid()}.sock"


def test_flags_win_over_variables_over_the_file_over_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, 'sessions_max = 1\nring_messages = 1\nname = "file"\n')
    variables = {"TENSORBUS_SESSIONS_MAX": "2", "TENSORBUS_RING_MESSAGES": "2"}
    loaded = load({"sessions_max": 3}, variables, file)
    config, origins = loaded.config, loaded.origins
    assert (config.sessions_max, config.ring_messages, config.name) == (3, 2, "file")
    assert origins["sessions_max"] == "flag --sessions-max"
    assert origins["ring_messages"] == "TENSORBUS_RING_MESSAGES"
    assert origins["name"] == str(file)
    assert origins["admin"] == "default"


def test_what_kubernetes_says_of_a_service_called_tensorbus_is_no_setting() -> None:
    variables = {
        "TENSORBUS_SERVICE_HOST": "10.0.0.11",
        "TENSORBUS_SERVICE_PORT": "4870",
        "TENSORBUS_SERVICE_PORT_BUS": "4870",
        "TENSORBUS_PORT": "tcp://10.0.0.11:4870",
        "TENSORBUS_PORT_4870_TCP": "tcp://10.0.0.11:4870",
        "TENSORBUS_PORT_4870_TCP_PROTO": "tcp",
        "TENSORBUS_PORT_4870_TCP_PORT": "4870",
        "TENSORBUS_PORT_4870_TCP_ADDR": "10.0.0.11",
    }
    assert set(load({}, variables, None).origins.values()) == {"default"}
    for unknown in ("TENSORBUS_SERVICE", "TENSORBUS_PORTS", "TENSORBUS_PORT_4870"):
        with pytest.raises(ConfigError, match="unknown, in the environment"):
            load({}, {**variables, unknown: "1"}, None)


@pytest.mark.parametrize(
    ("name", "value"),
    [("ring_bytes", "9" * 5000 + "KiB"), ("admin", "host:" + "9" * 5000), ("ring_messages", "9" * 5000)],
)
def test_a_number_that_is_too_long_for_python_is_refused(name: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"setting {name} .*expected"):
        load({name: value}, {}, None)
    with pytest.raises(ConfigError, match=f"setting {name} .*expected"):
        load({}, {}, write(tmp_path, f'{name} = "{value}"'))


def test_a_flag_that_was_not_given_decides_nothing() -> None:
    loaded = load({"listen": (), "admin": None}, {"TENSORBUS_ADMIN": "off"}, None)
    assert loaded.config.admin == "off"
    assert loaded.origins["listen"] == "default"


def test_the_file_may_be_named_by_a_variable_and_the_flag_wins(tmp_path: Path) -> None:
    named = write(tmp_path, 'name = "variable"')
    other = tmp_path / "other.toml"
    other.write_text('name = "flag"', encoding="utf-8")
    variables = {"TENSORBUS_CONFIG": str(named)}
    assert load({}, variables, None).config.name == "variable"
    assert load({}, variables, other).config.name == "flag"


def test_every_kind_of_setting_reads_from_a_file(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
        listen = ["tcp://0.0.0.0:1", "unix:///x"]
        admin = "[::1]:0"
        log_level = "debug"
        hello_timeout_s = 2
        ring_bytes = "4MiB"
        publish_window_bytes = 4096
        metrics_topic_labels = true
        """,
    )
    config = load({}, {}, file).config
    assert config.listen == ("tcp://0.0.0.0:1", "unix:///x")
    assert (config.admin, config.log_level, config.metrics_topic_labels) == ("[::1]:0", LogLevel.DEBUG, True)
    assert (config.ring_bytes, config.publish_window_bytes) == (4 * limits.MIB, 4096)
    assert config.hello_timeout_s == 2.0
    assert isinstance(config.hello_timeout_s, float)


def test_every_kind_of_setting_reads_from_the_environment() -> None:
    variables = {
        "TENSORBUS_LISTEN": "tcp://0.0.0.0:1, unix:///x",
        "TENSORBUS_LOG_LEVEL": "WARNING",
        "TENSORBUS_HELLO_TIMEOUT_S": "0.5",
        "TENSORBUS_RING_BYTES": "512 KiB",
        "TENSORBUS_PUBLISH_WINDOW_BYTES": "4096",
        "TENSORBUS_METRICS_TOPIC_LABELS": "1",
        "TENSORBUS_SESSIONS_MAX": "12",
    }
    config = load({}, variables, None).config
    assert config.listen == ("tcp://0.0.0.0:1", "unix:///x")
    assert (config.log_level, config.hello_timeout_s, config.metrics_topic_labels) == (LogLevel.WARNING, 0.5, True)
    assert (config.ring_bytes, config.publish_window_bytes, config.sessions_max) == (512 * limits.KIB, 4096, 12)


def test_variables_of_the_clients_and_of_other_programs_are_left_alone() -> None:
    variables = {"TENSORBUS_URL": "tcp://h:1", "TENSORBUS_TOKEN": "secret", "PATH": "/bin", "OTHER": "1"}
    variables |= {"TENSORBUS_KERNELS": "avx2", "TENSORBUS_LINK_ADDRESS": "127.0.0.1"}
    variables |= {"TENSORBUS_LINK_CONGESTION": "cubic", "TENSORBUS_LOOK_US": "0"}
    assert set(load({}, variables, None).origins.values()) == {"default"}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("sessions_max = 0", "setting sessions_max (FILE) 0: expected an integer above 0"),
        ("sessions_max = -4", "setting sessions_max (FILE) -4: expected an integer above 0"),
        ('sessions_max = "12"', "setting sessions_max (FILE) '12': expected an integer above 0"),
        ("sessions_max = 1.5", "setting sessions_max (FILE) 1.5: expected an integer above 0"),
        ("sessions_max = true", "setting sessions_max (FILE) True: expected an integer above 0"),
        ("hello_timeout_s = inf", "setting hello_timeout_s (FILE) inf: expected a number of seconds above 0"),
        ("hello_timeout_s = nan", "setting hello_timeout_s (FILE) nan: expected a number of seconds above 0"),
        ('hello_timeout_s = "1"', "setting hello_timeout_s (FILE) '1': expected a number of seconds above 0"),
        ('ring_bytes = "4MB"', "setting ring_bytes (FILE) '4MB': expected bytes above 0, as 4194304 or \"4MiB\""),
        ('ring_bytes = "0MiB"', "setting ring_bytes (FILE) '0MiB': expected bytes above 0"),
        ("metrics_topic_labels = 1", "setting metrics_topic_labels (FILE) 1: expected true or false"),
        ('listen = "tcp://h:1"', "setting listen (FILE) 'tcp://h:1': expected a list of addresses"),
        ("listen = []", "setting listen (FILE) []: expected a list of addresses"),
        ('listen = ["tcp://h:1", ""]', "expected a list of addresses"),
        ('log_level = "loud"', "setting log_level (FILE) 'loud': expected one of debug, info, warning, error"),
        ('admin = "4871"', "setting admin (FILE) '4871': expected host:port, or \"off\""),
        ('admin = "h:70000"', "setting admin (FILE) 'h:70000': expected host:port, or \"off\""),
        ('name = ""', "setting name (FILE) '': expected text that is not empty"),
        ("sesions_max = 1", "setting 'sesions_max': unknown, in FILE; did you mean sessions_max?"),
        ("zebra = 1", "setting 'zebra': unknown, in FILE; the settings are listen, admin,"),
        ("sessions_max 1", "is not TOML"),
        ("topics = 7", "setting topics (FILE) 7: expected tables, each below a line [[topics]]"),
        ("topics = [7]", "setting topics (FILE) [7]: expected tables"),
        ("[[topics]]\nlane = 'bulk'", "table 1 of [[topics]] in FILE {'lane': 'bulk'}: has no filter"),
        ("[[topics]]\nfilter = 7\nlane = 'bulk'", "in FILE {'filter': 7, 'lane': 'bulk'}: has no filter"),
        ("[[topics]]\nfilter = 'a'", "table 1 of [[topics]] in FILE 'a': sets nothing"),
        ("[[topics]]\nfilter = 'a//b'\nlane = 'bulk'", "in FILE: topic filter 'a//b': level 2 is empty"),
        ("[[topics]]\nfilter = '$sys/#'\nlane = 'bulk'", "in FILE: topic filter '$sys/#': topics that begin with $"),
        (
            "[[topics]]\nfilter = 'a'\nring_message = 4",
            "in FILE: policy setting 'ring_message': unknown; did you mean ring_messages?",
        ),
        ("[[topics]]\nfilter = 'a'\nring_messages = -4", "in FILE: ring_messages -4: must be a number of messages"),
        ("[[topics]]\nfilter = 'a'\nring_bytes = '4MB'", "in FILE: ring_bytes '4MB': must be a number of bytes"),
        ("[[topics]]\nfilter = 'a'\nring_bytes = '4GiB'", "in FILE: ring_bytes 4294967296: must be a number of bytes"),
        ("[[topics]]\nfilter = 'a'\nlane = 'fast'", "in FILE: lane 'fast': must be one of control, default, bulk"),
        (
            "[[topics]]\nfilter = 'a'\nlane = 'bulk'\n[[topics]]\nfilter = 'a'\nlane = 'bulk'",
            "table 2 of [[topics]] in FILE 'a': another table has the same filter",
        ),
    ],
)
def test_a_bad_line_in_the_file_is_refused_with_its_name_value_and_origin(
    tmp_path: Path, line: str, problem: str
) -> None:
    file = write(tmp_path, line)
    with pytest.raises(ConfigError) as error:
        load({}, {}, file)
    assert problem.replace("FILE", str(file)) in str(error.value)


@pytest.mark.parametrize(
    ("variable", "text", "problem"),
    [
        ("TENSORBUS_SESSIONS_MAX", "many", "setting sessions_max (TENSORBUS_SESSIONS_MAX) 'many': expected an integer"),
        ("TENSORBUS_SESSIONS_MAX", "0", "setting sessions_max (TENSORBUS_SESSIONS_MAX) 0: expected an integer above 0"),
        ("TENSORBUS_METRICS_TOPIC_LABELS", "maybe", "'maybe': expected true or false"),
        ("TENSORBUS_RING_BYTES", "lots", "'lots': expected bytes above 0"),
        ("TENSORBUS_LISTEN", "", "expected a list of addresses"),
        (
            "TENSORBUS_SESSION_MAX",
            "1",
            "'TENSORBUS_SESSION_MAX': unknown, in the environment; did you mean sessions_max?",
        ),
    ],
)
def test_a_bad_variable_is_refused(variable: str, text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        load({}, {variable: text}, None)
    assert problem in str(error.value)


def test_a_bad_flag_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"setting sessions_max \(flag --sessions-max\) -1"):
        load({"sessions_max": -1}, {}, None)
    with pytest.raises(ConfigError, match="unknown, in the flags; did you mean admin"):
        load({"admins": "off"}, {}, None)


def test_a_bad_value_is_refused_even_where_a_stronger_source_hides_it() -> None:
    with pytest.raises(ConfigError, match="TENSORBUS_SESSIONS_MAX"):
        load({"sessions_max": 1}, {"TENSORBUS_SESSIONS_MAX": "0"}, None)


def test_a_heartbeat_must_fit_its_timeout() -> None:
    with pytest.raises(ConfigError) as error:
        load({"heartbeat_interval_s": 30.0}, {"TENSORBUS_HEARTBEAT_TIMEOUT_S": "30"}, None)
    text = str(error.value)
    assert "heartbeat_timeout_s (TENSORBUS_HEARTBEAT_TIMEOUT_S) 30.0: must be longer than heartbeat_interval_s" in text
    assert "(flag --heartbeat-interval-s)" in text


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load({}, {}, tmp_path / "absent.toml")


def test_describe_tells_each_setting_with_its_origin() -> None:
    flags = {"listen": ("tcp://h:1", "unix:///x"), "ring_bytes": 3 * limits.KIB, "log_level": LogLevel.ERROR}
    rows = {name: (text, origin) for name, text, origin in describe(load(flags, {}, None))}
    assert rows["listen"] == ("tcp://h:1,unix:///x", "flag --listen")
    assert rows["ring_bytes"] == ("3KiB", "flag --ring-bytes")
    assert rows["publish_window_bytes"] == ("2MiB", "default")
    assert rows["log_level"] == ("error", "flag --log-level")
    assert rows["metrics_topic_labels"] == ("false", "default")
    assert rows["hello_timeout_s"] == ("3", "default")
    tables = ("topics", "permissions", "tenants")
    assert list(rows) == [entry.name for entry in dataclasses.fields(Config) if entry.name not in tables]


@pytest.mark.parametrize(
    ("name", "value"),
    [("sessions_max", (1 << 62) + 1), ("ring_bytes", 1 << 80), ("hello_timeout_s", 1e10), ("drain_timeout_s", 10**400)],
)
def test_numbers_in_which_the_broker_cannot_count_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match="at most|bytes above 0"):
        load({name: value}, {}, None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x = " + "[" * 100_000, "nested too deeply"),
        ("a" + ".a" * 16 + " = 1", "more than 16 dots"),
        ("[a" + " . 'a'" * 16 + "]", "more than 16 dots"),
        ("[[tenants]]\n" + "x" * (256 << 10), "more than 262144 bytes"),
        ("sessions_max = 0x7" + "f" * 5000, "int that is too long to be shown"),
        ("sessions_max = 7" + "0" * 5000, "is not TOML"),
        ("sessions_max = [[0x7" + "f" * 5000 + "]]", "list that is too long to be shown"),
    ],
)
def test_a_file_that_nobody_has_written_for_this_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "strange.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=problem):
        load({}, {}, file)


def test_a_key_may_have_as_many_levels_as_settings_have_and_more(tmp_path: Path) -> None:
    file = tmp_path / "deep.toml"
    file.write_text("a" + ".a" * 15 + " = 1", encoding="utf-8")
    with pytest.raises(ConfigError, match="unknown"):
        load({}, {}, file)


def test_names_of_the_http_interface_are_a_list_that_may_be_empty() -> None:
    assert load({"admin_names": "a.example, b"}, {}, None).config.admin_names == ("a.example", "b")
    assert load({}, {"TENSORBUS_ADMIN_NAMES": ""}, None).config.admin_names == ()


def test_what_describe_tells_can_be_read_back() -> None:
    loaded = load({}, {}, None)
    variables = {f"TENSORBUS_{name.upper()}": text for name, text, _ in describe(loaded)}
    assert load({}, variables, None).config == loaded.config


def test_a_config_without_sources_has_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/9")
    assert environment()["XDG_RUNTIME_DIR"] == "/run/user/9"
    assert Config() == load({}, environment(), None).config


TOPICS = """
ring_messages = 9

[[topics]]
filter = "gradients/#"
ring_messages = 0
ring_bytes = "64MiB"
retain = true
overflow = "drop_oldest"
batch_bytes = "8KiB"
batch_window_us = 50
lane = "bulk"
max_message_bytes = "1GiB"

[[topics]]
filter = "jobs/+"
acknowledge = true
lease_s = 1.5
max_deliveries = 3
dead_letter = "jobs/dead"
"""


def test_policies_of_topics_are_tables_of_the_file(tmp_path: Path) -> None:
    gradients, jobs = load({}, {}, write(tmp_path, TOPICS)).config.topics
    assert gradients == Declaration(
        "gradients/#",
        {
            "ring_messages": 0, "ring_bytes": 64 * limits.MIB, "retain": True, "overflow": "drop_oldest",
            "batch_bytes": 8 * limits.KIB, "batch_window_us": 50, "lane": "bulk",
            "max_message_bytes": 1024 * limits.MIB,
        },
        "configuration",
    )  # fmt: skip
    assert jobs.filter == "jobs/+"
    assert jobs.settings == {"acknowledge": True, "lease_s": 1.5, "max_deliveries": 3, "dead_letter": "jobs/dead"}


def test_policies_of_topics_are_described_by_filter(tmp_path: Path) -> None:
    file = write(tmp_path, TOPICS)
    rows = {name: (text, origin) for name, text, origin in describe(load({}, {}, file))}
    assert rows["topics.gradients/#"][0].startswith("ring_messages=0 ring_bytes=67108864 retain=true")
    assert rows["topics.jobs/+"] == (
        "acknowledge=true lease_s=1.5 max_deliveries=3 dead_letter=jobs/dead", str(file),
    )  # fmt: skip


def test_policies_of_topics_can_only_be_set_in_a_file() -> None:
    with pytest.raises(ConfigError, match="'TENSORBUS_TOPICS': topics can only be set in a file"):
        load({}, {"TENSORBUS_TOPICS": "a"}, None)


def test_tables_of_topics_are_bounded(tmp_path: Path) -> None:
    tables = "".join(f"[[topics]]\nfilter = 'a/{n}'\nlane = 'bulk'\n" for n in range(limits.DECLARATIONS_MAX + 1))
    with pytest.raises(ConfigError, match="number of tables .* 1025: the limit is 1024"):
        load({}, {}, write(tmp_path, tables))


@pytest.mark.parametrize("name", ["a\udcff", "a\nb", "a\0"])
def test_a_name_that_nobody_could_be_told_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="setting name .*expected text that is not empty and can be shown"):
        load({}, {"TENSORBUS_NAME": name}, None)


def test_a_path_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="setting audit .*expected a path"):
        load({}, {}, write(tmp_path, r'audit = "a\u0000b"'))
