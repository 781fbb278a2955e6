"""`make demo`: a model version travels to devices, field inputs travel back into a better one.

Every part is real: processes, broker, database, signatures, HTTP, files.  The steps use the public
API (`fleet.client`), the two commands, and what an attacker would have: access to files.

Environment: `KEEP=1` leaves everything running and prints the console's address;
`DEMO_DIR` is where everything is kept (default `demo-run`, made anew each time).
Exit code 0 if every step held, 1 with what failed otherwise.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from cloud.supervisor import holder
from examples.demo.attack import attack
from examples.demo.building import optimise, publish, start_control_plane, train
from examples.demo.devices import compare, enrol, outage
from examples.demo.field import DidNotHold
from examples.demo.learning import learn, open_console, roll_out
from examples.demo.stage import Stage, stop_agent

console = Console()


@dataclass(frozen=True)
class Act:
    """One step of the demo: about how long it takes is known, what it shows is not."""

    title: str
    play: Callable[[Stage], str]
    usual_s: float


ACTS = (
    Act("start the control plane", start_control_plane, 8),
    Act("train two sizes of a model", train, 18),
    Act("optimise for two hardware profiles", optimise, 32),
    Act("approve, sign and publish", publish, 3),
    Act("enrol three devices; they pull, verify, switch", enrol, 20),
    Act("compare predictions with the cloud's", compare, 3),
    Act("stop the broker, go on predicting, start it", outage, 10),
    Act("refuse a tampered chunk and a stranger's signature", attack, 25),
    Act("rotate the field; drift, corrections, retraining", learn, 60),
    Act("version 2 in two waves; predictions improve", roll_out, 30),
    Act("open the console", open_console, 2),
)


@dataclass
class Show:
    """Runs the acts and keeps what each showed."""

    stage: Stage
    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def run(self) -> None:
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", style="dim"),
            console=console,
            transient=True,
        ) as progress:
            bar = progress.add_task("", total=sum(act.usual_s for act in ACTS), left="")
            done_s = 0.0
            for number, act in enumerate(ACTS, 1):
                started = time.monotonic()

                def detail(
                    text: str, share: float = 0.0, number: int = number, act: Act = act,
                    done_s: float = done_s,
                ) -> None:  # fmt: skip
                    at = done_s + act.usual_s * min(share, 1.0)
                    left_s = sum(a.usual_s for a in ACTS) - at
                    progress.update(
                        bar, completed=at, left=f"about {left_s:.0f} s left",
                        description=f"{number:2}/{len(ACTS)} {act.title}"
                        + (f": {text}" if text else ""),
                    )  # fmt: skip

                detail("")
                self.stage.detail = detail
                shown = self._play(act)
                done_s += act.usual_s
                took = time.monotonic() - started
                progress.console.print(
                    f"[green]✓[/green] {number:2} {act.title} [dim]{took:.1f} s[/dim]"
                )
                for line in shown.splitlines():
                    progress.console.print(f"      {line}", highlight=False)
                self.rows.append((act.title, shown, f"{took:.1f}"))

    def _play(self, act: Act) -> str:
        """What the act showed.

        Raises:
            DidNotHold: it did not hold, or something it needs failed; names the act.
        """
        try:
            return act.play(self.stage)
        except DidNotHold as error:
            raise DidNotHold(f"{act.title}: {error}") from error
        except Exception as error:  # whatever it is, the person is told which step it was
            (self.stage.directory / "demo.log").write_text(traceback.format_exc(), encoding="utf-8")
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DidNotHold(f"{act.title}: {line}") from error

    def summary(self, total_s: float) -> None:
        table = Table(title="The loop, end to end", show_lines=False, header_style="bold")
        table.add_column("#", justify="right")
        table.add_column("step")
        table.add_column("what it showed", overflow="fold")
        table.add_column("s", justify="right")
        for number, (title, shown, took) in enumerate(self.rows, 1):
            table.add_row(str(number), title, shown.splitlines()[-1] if shown else "", took)
        table.add_section()
        table.add_row("", "all steps hold", "", f"{total_s:.0f}")
        console.print(table)


def main() -> int:
    directory = Path(os.environ.get("DEMO_DIR", "demo-run")).resolve()
    keep = os.environ.get("KEEP", "") not in ("", "0")
    if (pid := holder(directory / "cloud")) is not None:
        console.print(
            f"demo: a control plane (process {pid}) still runs in {directory / 'cloud'}; "
            f"stop it with 'skerry down --dir {directory / 'cloud'}'",
            soft_wrap=True,
        )
        return 1
    stop_kept_agents(directory)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    stage = Stage(directory)
    show = Show(stage)
    started = time.monotonic()
    held = False
    try:
        show.run()
        held = True
    except DidNotHold as error:
        console.print(f"[red]✗[/red] {escape(str(error))}", soft_wrap=True)
    except KeyboardInterrupt:
        console.print("stopped")
        return 130
    finally:
        if not (keep and held):
            stage.close()
    if not held:
        console.print(f"logs are in {directory}", soft_wrap=True)
        return 1
    show.summary(time.monotonic() - started)
    if keep:
        console.print(f"console  {stage.console_url()}", soft_wrap=True)
        console.print(f"stop it  skerry down --dir {directory / 'cloud'}", soft_wrap=True)
    return 0


def stop_kept_agents(directory: Path) -> None:
    """End the agents that an earlier `KEEP=1` left running."""
    for about in directory.glob("devices/*/run/agent.json"):
        stop_agent(about)


if __name__ == "__main__":
    sys.exit(main())
