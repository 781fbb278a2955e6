"""What `bench.serving` is made of: networks, requests, load generators, servers and peers.

Each server is a process of its own, so that its processor time and memory are its alone:

    agent    `edge_agent.serve` with everything that a device has switched on
    sketch   the floor: a bare protocol around onnxruntime that checks and counts nothing
    peers    other servers of the same network, each in an environment of its own
"""
