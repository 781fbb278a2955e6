"""Commands of the control plane, carried out one at a time.

Rules:
    * `commands` in agent.toml says which this device takes; any other is refused, as are unknown
      names and arguments.  A command loosens nothing: budgets, privacy hooks and trust stand.
    * Expiry is judged by the time that the signed metadata attest, so a clock set back revives
      nothing.
    * Each id is done once, over restarts too: it is in the journal before anything is done, its
      answer before it is sent.  What the agent's end interrupts is answered at the next start.
    * A command has `timeout_s`; one that hangs costs its thread, and further commands are refused
      while it does.  Serving, updates and sampling run on, on threads of their own.
    * What is attached is bounded (`edge_agent.wire.commands`) and holds neither keys nor inputs.
"""
