"""The broker: mosquitto as a managed child process, and the control plane's connection to it.

Owns the generated configuration and access list, and the only importer of paho on the cloud side.
What is in the messages belongs to `edge_agent.wire` and the rooms that subscribe.
"""
