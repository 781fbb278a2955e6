"""The public API: HTTP in front of the rooms.  Owns routes, roles and the mapping of errors.

No decision is made here: a route checks the caller's role, opens one transaction, calls a room and
turns its answer into a schema of `fleet.client.schemas`.
"""
