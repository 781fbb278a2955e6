"""The fleet console in the browser: NiceGUI pages on the public API.

Owns what a person sees and clicks.  Knows the control plane only as `fleet.client.AsyncClient`, so
whatever can be clicked can be scripted.  One module a page under `pages/`; the words of both
languages are in `text`, the colours of states in `tones`, the look in `assets/console.css`.
"""

from fleet.console.app import mount

__all__ = ["mount"]
