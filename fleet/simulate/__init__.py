"""Simulated fleets.

`virtual` drives the rollout machine alone, on a virtual clock, with devices that are a few numbers
each: it answers whether a plan stops a bad version in time, not what a broker or a network bears.

Not here yet: simulated agents that speak MQTT to a real broker.
"""
