"""The chaos test at its full size: `python -m tests.chaos` (some minutes).

Two of each process on PostgreSQL, a thousand simulated devices, a rollout; whatever runs is killed
again and again, broker and database are restarted in the middle.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from bench.loads.processes import free_port
from tests.chaos.storm import Storm, weather
from tests.chaos.tree import COPIES, Tree
from tests.postgres import PostgresServer


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--devices", type=int, default=1000)
    arguments.add_argument("--seconds", type=float, default=90.0, help="of killing, at least")
    arguments.add_argument("--seed", type=int, default=1)
    given = arguments.parse_args()
    storm = Storm(given.devices, given.seconds, 1800.0, given.seed)
    postgres = PostgresServer()
    postgres.start()
    try:
        with tempfile.TemporaryDirectory(prefix="skerry-chaos-") as name:
            ports = [free_port() for _ in range(COPIES + 1)]
            postgres.migrate_template()
            tree = Tree(Path(name) / "plane", postgres, postgres.database(), ports)
            try:
                found = weather(tree, storm, Path(name) / "devices", lambda t: print(t, flush=True))
            finally:
                tree.stop()
    finally:
        postgres.stop()
    print(
        f"{found.devices} devices, every one on its version; rollout {found.state} after "
        f"{found.seconds:.0f} s, {sum(found.killed.values())} kills ({dict(found.killed)}), "
        f"{found.restarts} restarts of broker and database; {found.rows} messages applied once "
        f"each, though sent again {found.resent} times; {found.audit_entries} audit entries "
        "in one chain"
    )


if __name__ == "__main__":
    main()
