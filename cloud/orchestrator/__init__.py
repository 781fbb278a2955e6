"""The orchestrator: drives the pure rollout machines of `fleet.rollouts` on the real fleet.

One leader at a time (`lease`) takes turns (`turn`): it reads what devices reported since its
high-water mark, steps the machines and carries their effects out.  The publisher, another process
with a lease of its own, sends what that queued (`outbox`).

Rules:
    * State, twins, gate decisions and outgoing messages of a turn are one transaction.
    * A desired twin leaves the outbox only after the director has signed that device's set.
    * Killed anywhere, the next turn does the rest; what is done twice changes nothing.
    * A rollout whose state cannot be read is halted, never guessed.

The API's side (`drafting`, `requests`, `planning`, `views`) steps the same machine and leaves
effects for the next turn.

Not here: when to train or to check for drift; what a wave is judged by (`fleet.rollouts.gates`).
"""

from cloud.orchestrator.outbox import OutboxPublisher
from cloud.orchestrator.planning import plan_rollout
from cloud.orchestrator.ports import Publisher, Signer
from cloud.orchestrator.requests import command_rollout, create_rollout, why_not
from cloud.orchestrator.turn import Orchestrator, TurnResult
from cloud.orchestrator.views import (
    assignment_page,
    explanation,
    rollout_detail,
    rollout_page,
    rollouts_out,
)

__all__ = [
    "Orchestrator",
    "OutboxPublisher",
    "Publisher",
    "Signer",
    "TurnResult",
    "assignment_page",
    "command_rollout",
    "create_rollout",
    "explanation",
    "plan_rollout",
    "rollout_detail",
    "rollout_page",
    "rollouts_out",
    "why_not",
]
