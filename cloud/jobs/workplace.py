"""Where a job's steps work: a directory of its own, its log, its project's files.

work/JOB/STEP/        files of one step; removed when the step starts and when the job ends
optimizer-cache/      what searches have finished; see `optimizer.cache`
logs/jobs/JOB.log     what the children printed, and every traceback
"""

from __future__ import annotations

import hashlib
import shutil
import traceback
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from cloud.blobs import Blobs
from cloud.db.tables import Job
from cloud.jobs.errors import StepFailed
from cloud.jobs.executors import Executor
from cloud.jobs.records import JobRecords
from cloud.project import Project, unpack_project

PROJECT_DIR = "project"


@dataclass(frozen=True)
class Workplace:
    """What every step of every job is given."""

    root: Path
    records: JobRecords
    blobs: Blobs
    executor: Executor

    def log_path(self, job_id: str) -> Path:
        return self.root / "logs" / "jobs" / f"{job_id}.log"

    @property
    def optimizer_cache(self) -> Path:
        """Finished work of searches: it outlives a job, and a step that is run again."""
        return self.root / "optimizer-cache"

    def job_dir(self, job_id: str) -> Path:
        return self.root / "work" / job_id

    def clear(self, job_id: str) -> None:
        """Remove a job's files, all but its log."""
        shutil.rmtree(self.job_dir(job_id), ignore_errors=True)

    def clear_ended(self) -> None:
        """Remove what jobs left behind that ended while no worker ran."""
        work = self.root / "work"
        for directory in work.iterdir() if work.is_dir() else ():
            if not self.records.is_open(directory.name):
                self.clear(directory.name)

    def note_traceback(self, job_id: str) -> None:
        """Append the exception that is being handled to the job's log."""
        path = self.log_path(job_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as log:
            log.write(traceback.format_exc())

    def desk(self, job_id: str, step: str, code_sha: str, start: float, share: float) -> Desk:
        """An empty directory for one step, with the project unpacked in it.

        Args:
            start, share: which part of the job's progress the step is, 0..1.
        """
        directory = self.job_dir(job_id) / step.replace(":", "-")
        shutil.rmtree(directory, ignore_errors=True)
        project = unpack_project(self.blobs.get(code_sha), directory / PROJECT_DIR)
        return Desk(self, job_id, step, project, directory, start, share)


@dataclass(frozen=True)
class Desk:
    """One step's view of the workplace."""

    place: Workplace
    job_id: str
    step: str
    project: Project
    directory: Path
    start: float
    share: float

    @property
    def project_dir(self) -> Path:
        return self.directory / PROJECT_DIR

    @property
    def blobs(self) -> Blobs:
        return self.place.blobs

    def job(self) -> Job:
        """The job's row.

        Raises:
            StepFailed: somebody removed it.
        """
        job = self.place.records.get(self.job_id)
        if job is None:
            raise StepFailed(f"job {self.job_id} is not in the database any more")
        return job

    def child(self, task: str, **request: JsonValue) -> dict[str, JsonValue]:
        """Run a task of `cloud.jobs.child` on this desk; raises what `Executor.run` raises."""
        return self.place.executor.run(
            task,
            {"project_dir": str(self.project_dir), **request},
            self.directory,
            self.place.log_path(self.job_id),
            progress=self.report,
            cancelled=lambda: not self.place.records.is_open(self.job_id),
        )

    def report(self, share: float, text: str, left_s: float | None = None) -> None:
        """Note how much of the step is done, 0..1, and what it is doing."""
        step = f"{self.step}: {text}" if text else self.step
        self.place.records.progress(self.job_id, step, self.start + self.share * share)

    def fetch(self, sha256: str, name: str) -> Path:
        """A blob as a file on the desk."""
        path = self.directory / name
        path.write_bytes(self.blobs.get(sha256))
        return path

    def files_sha(self, *names: str) -> str:
        """Digest over these files of the project: part of the key of what depends on them."""
        digest = hashlib.sha256()
        for name in sorted(names):
            data = (self.project_dir / name).read_bytes()
            digest.update(f"{name}\0{len(data)}\0".encode() + data)
        return digest.hexdigest()
