"""What every route may use."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from cloud.api.denials import Denials
from cloud.db.engine import Sessions, read_only
from cloud.jobs.client import JobQueue
from cloud.services import Services
from fleet.enrolment.flood import Refusals


@dataclass(frozen=True)
class Context:
    """Opened services, and the ports that routes call.

    Attributes:
        writers: one write transaction each, `with context.writers.begin() as session`.
        readers: never take the write lock.
        clock: seconds since the epoch.
        refusals: addresses that enrolment was refused to.
        denials: callers who may not do what they asked.
    """

    services: Services
    writers: Sessions
    readers: Sessions
    jobs: JobQueue
    clock: Callable[[], float]
    refusals: Refusals = field(default_factory=Refusals)
    denials: Denials = field(default_factory=Denials)

    @classmethod
    def of(cls, services: Services, clock: Callable[[], float] = time.time) -> Context:
        """What routes need, on opened services."""
        return cls(
            services=services,
            writers=services.sessions,
            readers=read_only(services.sessions),
            jobs=JobQueue(services.sessions),
            clock=clock,
        )


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


ContextDep = Annotated[Context, Depends(_context)]
