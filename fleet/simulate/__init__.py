"""Simulated fleets.

Two ways, for two questions:

    virtual    the rollout machine alone on a virtual clock, devices of a few numbers each
               (`virtual_devices`): whether a plan stops a bad version in time; many times over in
               `montecarlo`
    fleet      devices on real sockets, each with its certificate and its own MQTT connection: what
               broker, control plane and network bear

What a simulated device is made of:

    models     how long things take, what fails, who goes away; all drawn from a seed
    device     what it decides and says, by the wire contract
    journal    what waits for the control plane's acknowledgement
    mqtt5      packets        line      one connection over TLS
    standing   a line that is made again        connected      a device on one
    identities enrolment in bulk, kept for the next time
"""
