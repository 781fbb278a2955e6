"""Errors of the jobs room.

JobError             one line for `Job.error`; the traceback is in the job's log
├── StepFailed       the project's code, the data or the budget is at fault (engineer)
├── ChildDied        a child process ended without an answer: killed, out of memory (operator)
├── StepTimeout      a child process did not end in time (engineer)
└── JobCancelled     a person cancelled the job

All are made of one text, so that they survive being stored with a workflow.
"""

from __future__ import annotations


class JobError(Exception):
    """Base; its text is one line."""


class StepFailed(JobError):
    """What the step ran says no."""


class ChildDied(JobError):
    """The process is gone and left no answer."""


class StepTimeout(JobError):
    """The process took too long."""


class JobCancelled(JobError):
    """A person cancelled the job."""
