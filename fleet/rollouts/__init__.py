"""Rollouts: which devices get a version, in which order, and when to stop.

Owns the plan (`plan`), the state (`model`), the transitions (`machine`) and the judgements
(`gates`) of a rollout.  Everything here is pure: (state, event, now) → (state, effects).  Whoever
drives it (the control plane's orchestrator, the virtual-clock simulation) carries the effects out
and stores the state.

Rules:
    * Gates fail closed: a threshold that cannot be read never lets a wave pass.
    * An UNREACHABLE device is in no denominator.
    * Phase timers start when the device has confirmed that it knows its assignment.
    * A newer generation supersedes; a report of another generation changes nothing.
    * A wave that failed stays failed; a wave is offered only after the one before it passed.
"""
