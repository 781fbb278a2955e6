"""The colour of a state: five tones for every word that the control plane uses for a state."""

from __future__ import annotations

from typing import Final, Literal

Tone = Literal["ok", "info", "warn", "bad", "mute"]

_WORDS: Final[dict[Tone, str]] = {
    "ok": "healthy passed pass champion published succeeded completed online ok committed open"
    " in_step done",
    "info": "running offering soaking offered downloading verified staged activating probation"
    " approved scheduled rolling_back candidate catching_up sent accepted",
    "warn": "paused insufficient inconclusive window_wait rolled_back local_rollback unreachable"
    " pending_approval refused",
    "bad": "failed fail rejected halted drift revoked timed_out invalid identity_cloned"
    " profile_differs renewal_contested",
    "mute": "pending queued offline cancelled superseded retired draft expired used unknown",
}
_TONES: Final[dict[str, Tone]] = {
    word: tone for tone, words in _WORDS.items() for word in words.split()
}

STATES: Final = frozenset(_TONES)
"""Every known state; the dictionary has a word for each."""


def plain(state: str) -> str:
    """A state as a reader sees it: "ROLLING_BACK" becomes "rolling back"."""
    return state.replace("_", " ").lower()


def tone_of(state: str) -> Tone:
    """Tone of a state; a phase in parentheses, as in "FAILED(staged)", does not matter."""
    return _TONES.get(state.split("(")[0].strip().lower().replace(" ", "_"), "mute")
