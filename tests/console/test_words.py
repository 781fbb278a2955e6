from __future__ import annotations

import ast
import re
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

import fleet.console
from fleet.console import text, tones
from fleet.console.korean import WORDS
from fleet.console.pages import device_commands, devices, rollout
from fleet.console.shell import _NAVIGATION as NAVIGATION
from fleet.console.tones import plain, tone_of

ROOT = Path(fleet.console.__file__).parent
TRANSLATING = {"t", "many", "translate", "_t", "words"}
TRANSLATED_NAMES = {"Previous page", "Next page", "Balanced accuracy", "build", "retrain"}
TRANSLATED_NAMES |= {"uniform", "uncertain", "event", "selected"}


def _phrases() -> Iterator[str]:
    """Every literal that the console's code hands to a translating function."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name in TRANSLATING:
                for argument in node.args:
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                        yield argument.value


def test_every_phrase_of_the_code_has_korean_words():
    commands = [
        phrase
        for command in rollout._COMMANDS
        for phrase in (command.label, command.question, command.body)
        if phrase
    ]
    phrases = {*_phrases(), *commands, *devices._PRESENCE, *TRANSLATED_NAMES}
    phrases |= {name for _, name, _ in NAVIGATION}
    phrases |= {label for _, label, _ in device_commands._AT_ONCE}
    phrases |= set(device_commands._NAMES.values())
    assert len(phrases) > 150
    assert sorted(phrases - WORDS.keys()) == []


def test_every_state_has_korean_words():
    assert sorted({plain(state) for state in tones.STATES} - WORDS.keys()) == []


def test_korean_words_fill_the_same_places():
    def places(phrase: str) -> set[str]:
        return {name for _, name, _, _ in string.Formatter().parse(phrase) if name}

    assert {key for key, words in WORDS.items() if places(key) != places(words)} == set()


def test_korean_words_are_korean_but_for_proper_names():
    same = {key for key, words in WORDS.items() if not re.search("[가-힣]", words)}
    assert same == {"Python", "Macro F1", "Hotelling T²", "by {name}"}


def test_a_missing_phrase_stays_english():
    assert text.translate("ko", "{n} unheard of", n=3) == "3 unheard of"


@pytest.mark.parametrize(
    ("state", "tone"),
    [
        ("HEALTHY", "ok"),
        ("ROLLING_BACK", "info"),
        ("FAILED(staged)", "bad"),
        ("pending approval", "warn"),
        ("PASS", "ok"),
        ("something new", "mute"),
    ],
)
def test_a_state_has_a_tone_however_it_is_written(state, tone):
    assert tone_of(state) == tone
