"""What `bench.update` is made of.

subjects   networks that are trained for real, then further on new data
bundles    what is published of them, old and new, in fp32 and int8
deltas     the bytes an update costs, beside other tools on the same files
apply      the memory that applying a delta takes, in a process of its own
plane      a control plane in a process of its own: repositories, broker, delivery, API
device     a device's side of the line in a process of its own: pulls, or only listens
line       rates, waste after kills
agent      a real agent: publish to serving, memory, bytes of a refresh without news
report     tables and JSON
"""
