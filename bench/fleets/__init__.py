"""What `bench.fleet` is made of.

plane      the control plane as `skerry up` runs it, and what it weighs
contents   devices with their identities, and releases, put into it in bulk
fleet      simulated devices on an event loop of their own thread
bare       a subscriber that only acknowledges, in a process of its own: the ceiling of ingest
parts      connecting, ingest, the API, rollouts, gateways
run        which parts, in which order
report     tables and JSON
"""
