"""Commands to single devices, beyond the desired twin: how far each is.

What cannot be said as a desired state: restart the agent, fetch a log, sample more for an hour.
Each has an expiry, an answer and a time-out.  The state machine here is pure; the control plane's
table and its outbox are `cloud.commands`, the messages `edge_agent.wire.commands`.
"""
