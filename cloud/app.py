"""Composition root of the control plane: what each process is made of.

    api           the public API and the console
    ingest        what devices send, committed and acknowledged
    delivery      metadata and chunks for devices
    orchestrator  rollouts, outbox, drift checks and retraining on their schedules
    worker        durable jobs: datasets, training, optimisation

Each runs alone by `skerry run NAME`, or all together under `skerry up` (`cloud.supervisor`).
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cloud.errors import UserError
from cloud.services import (
    CONTROL_PLANE_IDENTITY,
    Services,
    initialise,
    open_services,
    write_secret,
)
from cloud.settings import Settings
from cloud.supervisor import Supervisor, hold_directory, require_free_port

log = logging.getLogger("skerry.app")

PARENT_CHECK_S: Final = 1.0


def start_control_plane(settings: Settings, ready: Callable[[], None]) -> None:
    """Run the whole tree until SIGINT or SIGTERM.

    Raises:
        OperatorError: a port or the directory is taken, or mosquitto is missing.
    """
    from cloud.broker.mosquitto import Mosquitto, find_mosquitto

    find_mosquitto()
    with hold_directory(settings.directory):
        require_free_port(settings.host, settings.api_port, "API and console", "--api-port")
        require_free_port(settings.host, settings.broker_port, "broker", "--broker-port")
        initialise(settings)
        services = open_services(settings)
        (settings.directory / "run").mkdir(exist_ok=True)
        (settings.directory / "run" / "api.ready").unlink(missing_ok=True)
        about = {"url": settings.api_url, "broker_port": settings.broker_port, "pid": os.getpid()}
        write_secret(settings.directory / "control-plane.json", json.dumps(about))
        broker = Mosquitto.for_authority(
            settings.directory / "broker",
            services.authority,
            host=settings.host,
            port=settings.broker_port,
        )
        os.environ["SKERRY_SUPERVISED"] = "1"
        Supervisor(settings, broker).run(ready)


def run_process(name: str, settings: Settings) -> None:
    """Run one process until SIGTERM.

    Raises:
        UserError: there is no process of that name.
    """
    main = {
        "api": _run_api,
        "ingest": _run_ingest,
        "delivery": _run_delivery,
        "orchestrator": _run_orchestrator,
        "worker": _run_worker,
    }.get(name)
    if main is None:
        raise UserError(
            f"no process {name!r}; there are api, ingest, delivery, orchestrator and worker"
        )
    if os.environ.get("SKERRY_SUPERVISED"):
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    log.info("process.started name=%s pid=%d", name, os.getpid())
    main(settings)


def _end_with_parent(parent: int) -> None:
    """End this process when its supervisor is gone, however that ended."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _stop_event() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: stop.set())
    return stop
