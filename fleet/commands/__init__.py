"""Commands to single devices, beyond the desired twin.

Will own what cannot be said as a desired state: fetch a log, restart the agent, run a measurement
on a lab device.  Each with an expiry, a correlation id and an answer.  There is none yet: updates
are desired state and need no command.
"""
