"""Measuring candidates that the control plane orders: only where the device's operator said so.

Rules:
    * `lab = true` in agent.toml, or every order is refused before anything is looked at.
    * An order counts when the director signed its digest for this device, beside the very blobs
      that it names, and the image repository's lab role names the same: see `edge_agent.update`.
      Its trust has marks and a cache of its own, so nothing here can make an update look old.
    * A candidate never gets near the slots: it is unpacked into a directory of its own within a
      quota, runs in a subprocess under limits, and is removed, whatever becomes of it.  Serving
      goes on; how many predictions were answered meanwhile stands in the result.
    * One order at a time.  Each is answered once, by a result that the device's key signed: what a
      restart interrupts is answered as aborted, what was answered is not done again.
"""
