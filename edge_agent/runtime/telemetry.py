"""Nothing of a device or a project is reported to a vendor.

`import openvino` by itself sends a usage event, as NNCF does for each call, unless the user opted
out.  Both do without where the package `openvino_telemetry` cannot be imported, so it is made
unimportable in this process.  Call this before every first import of either.
"""

from __future__ import annotations

import sys


def forbid_telemetry() -> None:
    """Keep OpenVINO and NNCF from reporting.  Idempotent; too late once they are imported."""
    # None in sys.modules makes the import system raise ModuleNotFoundError for the name.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
