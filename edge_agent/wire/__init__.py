"""The contract between a device and its control plane.

Owns every id, topic and message that crosses the network, and the manifest that travels in a
bundle.  Nothing here performs I/O.

Rules:
    * A message is versioned by its topic prefix; fields are only ever added.
    * Unknown fields are kept (`extra="allow"`), so an older reader passes on what it does not know.
    * A reader checks the size before it parses and raises `WireError` for anything malformed.
    * Trust never comes from here: what a device installs is decided by signed metadata alone.
"""
