"""Which devices are meant: pure selection by profile and labels.

The registry itself is the control plane's table; this room says what a filter means, so that
rollouts, lists and simulations mean the same by it.
"""
