"""A project is stored whole or refused; jobs are asked for and cancelled."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud.project import pack_project
from fleet.client.client import Client
from fleet.client.errors import ApiError
from fleet.client.schemas import JobIn


def test_a_project_is_stored_by_the_hash_of_its_files(api: Client, project_directory: Path) -> None:
    archive = pack_project(project_directory)
    first = api.apply_project("digits", archive)
    again = api.apply_project("digits", archive)
    assert first.code_sha == again.code_sha
    assert api.project("digits").spec["model"] == "digits"


def test_a_project_under_another_name_is_refused(api: Client, project_directory: Path) -> None:
    with pytest.raises(ApiError, match="names the project 'digits'"):
        api.apply_project("other", pack_project(project_directory))


@pytest.mark.parametrize("archive", [b"", b"not a tar", b"\0" * 10240])
def test_what_is_not_a_project_is_refused_in_one_line(api: Client, archive: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        api.apply_project("digits", archive)
    assert caught.value.status == 400
    assert "\n" not in str(caught.value)


def test_a_job_of_an_unknown_project_is_not_started(api: Client) -> None:
    with pytest.raises(ApiError, match="no project 'ghost'"):
        api.start_job(JobIn(kind="build", project="ghost"))


def test_a_queued_job_can_be_cancelled_once(api: Client, project_directory: Path) -> None:
    api.apply_project("digits", pack_project(project_directory))
    job = api.start_job(JobIn(kind="build", project="digits"))
    assert job.state == "queued"
    assert api.cancel_job(job.id).state == "cancelled"
    with pytest.raises(ApiError) as caught:
        api.cancel_job(job.id)
    assert caught.value.status == 409
