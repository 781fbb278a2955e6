"""Which devices are meant: pure selection by profile and labels, and by queries.

    select      filters by profile and labels
    facts       what is known of a device, and the names of its fields
    query       the language: text to condition, errors with their position
    conditions  when each part of a query holds

The registry itself is the control plane's table; this room says what a filter means, so that
rollouts, lists and simulations mean the same by it.
"""
