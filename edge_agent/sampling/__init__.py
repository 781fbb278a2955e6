"""Which inputs of the field are uploaded, and in what form.

Owns the policies, the byte budgets, the privacy hooks and the ring of recent predictions.

Rules:
    * A decision comes before a copy; encoding and disk are another thread's work.
    * Every sample carries its stratum and the probability with which that stratum kept it.  The
      uniform stratum is drawn first and has a budget of its own, so that nothing about an input
      decides whether it is in there: drift and accuracy are judged by it alone.
    * Privacy hooks run in their order before anything touches the disk.  A hook that is unknown or
      fails keeps nothing: no sample at all is better than one that should not exist.
"""

from edge_agent.sampling.privacy import PrivacyError, UnknownHook, privacy_hook
from edge_agent.sampling.sampler import Journal, Override, Sampler

__all__ = ["Journal", "Override", "PrivacyError", "Sampler", "UnknownHook", "privacy_hook"]
