"""What devices send, applied once, committed, and only then acknowledged.

Rules:
    * (device, stream, seq) is written to the inbox in the transaction that applies the message: a
      message that comes twice is acknowledged twice and applied once.
    * Commit, then the application's acknowledgement, then the broker's.
    * Who sends is the device of the topic, which the broker enforced.  An unknown or revoked device
      is not acknowledged and nothing of it is applied.
    * A malformed message is counted, logged and dropped; where its number can be read it is
      acknowledged as well, so that it does not block its device's journal.
    * An earlier start of a device that comes back again and again is an alarm: its identity is
      cloned (see `starts`).  Nothing is taken from either: only a person can tell which is real.
    * A fault of ours (database, blob store) is never the message's: nothing is acknowledged, and
      the broker or the device sends it again.

Any number of processes may ingest: they share the subscription to `up/+`.
"""

from cloud.ingest.consumer import Ingest
from cloud.ingest.errors import BadMessage

__all__ = ["BadMessage", "Ingest"]
