"""What a device is: its settings, its identity, how it enrols, and what it is made of.

One directory holds everything of one agent:

    agent.toml           settings, all optional
    device.key/.pem      private key (0600) and certificate
    ca.pem               whom the device trusts on the network
    device.json          id, profile and broker, as given at enrolment
    roots/               first TUF roots of both repositories
    outbox.db            journal of what waits for the control plane
    models/ tuf/         slots and trust state (`edge_agent.update`)
    run/agent.json       addresses of the running agent
"""
