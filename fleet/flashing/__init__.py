"""First installation onto a machine: image, card or disk, SSH.

Will own the signed installation bundle (agent wheels, root metadata, certificate authority,
profile, claim, settings) and its three ways onto a device.  There is none yet: an agent is
installed with pip and enrolled with a claim file.
"""
