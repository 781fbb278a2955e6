"""Errors of the control plane that a person acts upon.

SkerryError                     one line: what is wrong, where, what to do
├── UserError                   the request or a file is wrong; mend it and try again
│   ├── NotFound                no such device, model, job …
│   ├── Conflict                the thing is not in a state that allows this
│   └── Forbidden               not this person; somebody else may
└── OperatorError               the machine or its set-up is wrong
"""

from __future__ import annotations


class SkerryError(Exception):
    """Base; its text is shown as it is, on one line, without a traceback."""


class UserError(SkerryError):
    """The request is wrong."""


class NotFound(UserError):
    """Nothing has this name."""


class Conflict(UserError):
    """Not possible in the present state."""


class Forbidden(UserError):
    """Not for whoever asks."""


class OperatorError(SkerryError):
    """The machine is not ready for this."""
