"""Settings: what is wrong is named, nothing is ignored."""

from __future__ import annotations

import os

import pytest

from edge_agent.device.config import AgentSettings, load_settings, read_token
from edge_agent.device.errors import BadSettings


def test_without_a_file_the_defaults_hold_and_loopback_is_one(tmp_path):
    settings = load_settings(tmp_path)
    assert settings == AgentSettings()
    assert settings.http_host == "127.0.0.1"


def test_given_values_are_taken(tmp_path):
    (tmp_path / "agent.toml").write_text(
        'http_port = 0\nmetrics_interval_s = 2.5\nhttp_allow_origins = ["https://app.example"]\n'
    )
    settings = load_settings(tmp_path)
    assert settings.http_allow_origins == {"https://app.example"}
    assert (settings.http_port, settings.metrics_interval_s) == (0, 2.5)


def test_the_least_rate_of_the_defaults_gives_way_to_a_limit_below_it(tmp_path):
    (tmp_path / "agent.toml").write_text("update_max_kib_s = 2\n")
    settings = load_settings(tmp_path)
    assert 0 < settings.update_max_kib_s < settings.update_min_kib_s


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("htp_port = 1", "unknown key 'htp_port'; did you mean 'http_port'?"),
        ("zzz = 1", "unknown key 'zzz'; keys are http_host"),
        ("http_port = 70000", "http_port: Input should be less than or equal to 65535, not 70000"),
        ('metrics_interval_s = "soon"', "metrics_interval_s: "),
        ('log_level = "loud"', "log_level: "),
        ("http_port =", "Invalid value"),
        ("http_rate_per_client = -1", "http_rate_per_client: "),
        ("http_rate_per_client = nan", "http_rate_per_client: "),
        ("http_rate_per_client = inf", "http_rate_per_client: "),
        ("http_burst_per_client = 1.5", "http_burst_per_client: "),
        ("http_burst_per_client = 5", "has no meaning without http_rate_per_client"),
        ('http_allow_origins = ["*"]', "http_allow_origins: "),
        ('http_allow_origins = "https://app.example"', "http_allow_origins: "),
        ('http_allow_origins = ["https://app.example/"]', "http_allow_origins: "),
        ("http_max_connections = 0", "http_max_connections: "),
        ("http_max_inflight_bytes = 1000", "http_max_inflight_bytes: "),
        ("http_queue_ms = 0", "http_queue_ms: "),
        ("update_max_kib_s = 2\nupdate_min_kib_s = 4", "asks for more than update_max_kib_s"),
        ('debug = "perhaps"', "debug: "),
        ("grpc_port = 70000", "grpc_port: "),
        ("grpc_port = 8900", "grpc_port and http_port are the same"),
        ('log_format = "xml"', "log_format: "),
        ("http_token_file = 1", "http_token_file: "),
        ('http_token = "secret"', "unknown key 'http_token'; did you mean 'http_token_file'?"),
        ('http_socket_group = "root"', "http_socket_group says who may open http_socket"),
        (
            'http_socket = "p"\nhttp_socket_group = "no-such-group"',
            "http_socket_group: there is no such group on this machine, not 'no-such-group'",
        ),
        (f'http_socket = "{"p" * 120}"', "is longer than 100 bytes"),
        ('http_socket = "/"', "http_socket: / is a directory"),
        ('http_socket = "."', "is a directory"),
        ("http_port = true", "http_port: Input should be a valid integer, not True"),
        ("http_port = 8900.0", "http_port: Input should be a valid integer"),
        ('http_port = "8900"', "http_port: Input should be a valid integer"),
        ("metrics_interval_s = true", "metrics_interval_s: Input should be a valid number"),
        ("debug = 1", "debug: Input should be a valid boolean"),
        ('http_host = ""', "http_host: must be an address or a name"),
        ('http_host = "local host"', "http_host: must be an address or a name"),
        ('http_host = "a\\u0000"', "http_host: has characters that cannot be seen"),
        ('http_socket = "a\\u0000b"', "http_socket: has characters that cannot be seen"),
        ('http_token_file = "a\\u0000b"', "http_token_file: has characters that cannot be seen"),
        ('http_socket_group = "a\\u0000b"', "http_socket_group: has characters that"),
        ("a = " + "[" * 3000 + "]" * 3000, "is nested too deep"),
    ],
)
def test_a_wrong_key_or_value_is_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "agent.toml").write_text(text + "\n")
    with pytest.raises(BadSettings) as caught:
        load_settings(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path / "agent.toml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_socket_is_found_from_the_directory_of_the_agent(tmp_path):
    assert AgentSettings().socket_path(tmp_path) is None
    assert AgentSettings(http_socket="p.sock").socket_path(tmp_path) == tmp_path / "p.sock"
    assert str(AgentSettings(http_socket="/run/p.sock").socket_path(tmp_path)) == "/run/p.sock"


@pytest.mark.parametrize(
    ("rate", "burst", "taken"), [(0.0, 0, 1), (0.5, 0, 1), (7.5, 0, 8), (5.0, 20, 20)]
)
def test_a_burst_is_one_second_unless_it_is_given(rate, burst, taken):
    settings = AgentSettings(http_rate_per_client=rate, http_burst_per_client=burst)
    assert settings.burst_per_client == taken


TOKEN = "a-token-of-some-length"


def test_a_token_is_read_from_its_file_and_never_shown(tmp_path):
    settings = AgentSettings(http_token_file="token")
    (tmp_path / "token").write_text(TOKEN + "\n")
    (tmp_path / "token").chmod(0o600)
    token = read_token(settings, tmp_path)
    assert token is not None
    assert token.get_secret_value() == TOKEN
    assert TOKEN not in f"{token!r} {token} {settings!r}"
    assert read_token(AgentSettings(), tmp_path) is None


@pytest.mark.parametrize("pasted", [f'"{TOKEN}"', f'"{TOKEN}\\u0007"', f'["{TOKEN}"]', TOKEN])
def test_a_token_in_place_of_its_file_is_not_repeated(tmp_path, pasted):
    (tmp_path / "agent.toml").write_text(f"http_token_file = {pasted}\n")
    with pytest.raises(BadSettings) as caught:
        read_token(load_settings(tmp_path), tmp_path)
    assert TOKEN not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (None, 0, "cannot be read: No such file or directory"),
        (TOKEN, 0o644, "is open to others (mode 0644): chmod 600 it"),
        (TOKEN, 0o620, "is open to others"),
        ("short", 0o600, "16 characters or more"),
        ("", 0o600, "16 characters or more"),
        ("x" * 5000, 0o600, "16 characters"),
        ("two tokens in one file", 0o600, "visible ASCII"),
        ("one-line-of-a-token\nanother", 0o600, "visible ASCII"),
        ("gültig-aber-nicht-ascii", 0o600, "visible ASCII"),
        ("pipe", 0o600, "is no plain file"),
    ],
)
def test_a_token_that_cannot_be_used_is_one_line_that_does_not_show_it(
    tmp_path, content, mode, message
):
    path = tmp_path / "token"
    if content == "pipe":
        os.mkfifo(path, mode)
    elif content is not None:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(BadSettings) as caught:
        read_token(AgentSettings(http_token_file="token"), tmp_path)
    text = str(caught.value)
    assert message in text
    assert "http_token_file" in text
    assert "\n" not in text
    assert TOKEN not in text
