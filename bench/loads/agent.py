"""The agent's server as a process: everything on that a device has on.

    python -m bench.loads.agent BUNDLE [BUNDLE] --port N --journal FILE

Serves the first bundle on the loopback address: validation, metrics, and the sampler that observes
every prediction and journals to an outbox.  It says `{"port": …}` with how long its start took, and
takes one command: `{"swap_hz": 10, "seconds": 5}` installs the bundles in turn, each loaded anew,
warmed up and checked, and says how many it installed.

Nothing is imported here that a device does not carry: the memory that is measured is the server's.
"""

from __future__ import annotations

import time

_BEGAN_S = time.perf_counter()

import argparse  # noqa: E402
import asyncio  # noqa: E402
import itertools  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import uvloop  # noqa: E402

from edge_agent.link.outbox import Outbox  # noqa: E402
from edge_agent.sampling import Sampler  # noqa: E402
from edge_agent.serve import DataPlane, ServedModel, Server  # noqa: E402

_IMPORTED_S = time.perf_counter()
_JOURNAL_BYTES = 64 << 20


class BenchedAgent:
    """The parts of an agent that a request meets."""

    def __init__(self, bundles: list[Path], port: int, journal: Path) -> None:
        self._bundles = bundles
        self._sampler = Sampler(Outbox(journal, _JOURNAL_BYTES), key=b"bench" * 8)
        self._plane = DataPlane(self._sampler.observe)
        self._server = Server(self._plane, host="127.0.0.1", port=port)
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        await self._install(self._bundles[0])
        await self._server.start()
        ready_s = time.perf_counter()
        ended = asyncio.Event()
        loop.add_reader(sys.stdin.fileno(), self._on_command, ended)
        _say(
            {
                "port": self._server.port,
                "import_seconds": _IMPORTED_S - _BEGAN_S,
                "start_seconds": ready_s - _IMPORTED_S,
            }
        )
        await ended.wait()
        await self._server.stop()
        self._plane.close()

    def _on_command(self, ended: asyncio.Event) -> None:
        line = sys.stdin.buffer.readline()
        if not line:
            ended.set()
            return
        command = json.loads(line)
        task = asyncio.get_running_loop().create_task(
            self._swap(command["swap_hz"], command["seconds"])
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _swap(self, hz: float, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        began, swaps = loop.time(), 0
        turn = itertools.cycle(reversed(self._bundles))
        while loop.time() - began < seconds:
            await self._install(next(turn))
            swaps += 1
            await asyncio.sleep(max(0.0, began + swaps / hz - loop.time()))
        _say({"swaps": swaps, "seconds": loop.time() - began})

    async def _install(self, bundle: Path) -> None:
        """As the agent does: load in a thread, prepare sampling, one assignment."""
        model = await asyncio.to_thread(ServedModel.load, bundle)
        self._sampler.prepare(model.manifest)
        self._plane.install(model.name, model)


def _say(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    arguments.add_argument("--port", type=int, default=0)
    arguments.add_argument("--journal", type=Path, required=True)
    given = arguments.parse_args()
    uvloop.run(BenchedAgent(given.bundles, given.port, given.journal).run())


if __name__ == "__main__":
    main()
