"""Settings: what is wrong is named, nothing is ignored."""

from __future__ import annotations

import pytest

from edge_agent.device.config import AgentSettings, load_settings
from edge_agent.device.errors import BadSettings


def test_without_a_file_the_defaults_hold_and_loopback_is_one(tmp_path):
    settings = load_settings(tmp_path)
    assert settings == AgentSettings()
    assert settings.http_host == "127.0.0.1"


def test_given_values_are_taken(tmp_path):
    (tmp_path / "agent.toml").write_text("http_port = 0\nmetrics_interval_s = 2.5\n")
    settings = load_settings(tmp_path)
    assert (settings.http_port, settings.metrics_interval_s) == (0, 2.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("htp_port = 1", "unknown key 'htp_port'; did you mean 'http_port'?"),
        ("zzz = 1", "unknown key 'zzz'; keys are http_host"),
        ("http_port = 70000", "http_port: Input should be less than or equal to 65535, not 70000"),
        ('metrics_interval_s = "soon"', "metrics_interval_s: "),
        ('log_level = "loud"', "log_level: "),
        ("http_port =", "Invalid value"),
    ],
)
def test_a_wrong_key_or_value_is_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "agent.toml").write_text(text + "\n")
    with pytest.raises(BadSettings) as caught:
        load_settings(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path / "agent.toml") in str(caught.value)
