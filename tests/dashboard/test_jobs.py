"""Jobs are processes that outlive the page and the server: found again, stopped, gone on with, and never confused."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from headwater.core.errors import ConflictError, HeadwaterError, MissingError
from headwater.dashboard.jobs import Job, Jobs, whole

WORKER = """
import json, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
(folder / "progress.json").write_text(json.dumps({"done": 1, "total": 2}))
if sys.argv[2] == "fail":
    print("it broke"); sys.exit(3)
while sys.argv[2] == "wait" and not (folder / "go").exists():
    time.sleep(0.02)
(folder / "result.json").write_text(json.dumps({"answer": 42}))
"""


def begin(jobs: Jobs, how: str, number: int = 1) -> Job:
    """A process that ends at once, waits, or fails."""
    command = [sys.executable, "-c", WORKER, "{job}", how]
    return jobs.start("test", "a job", {"n": number}, command, now_ns=number, random_bytes=number.to_bytes(8, "big"))


def until(jobs: Jobs, job: Job, state: str) -> Job:
    """The job once it is in a state."""
    for _ in range(500):
        if (found := jobs.get(job.id)).state == state:
            return found
        time.sleep(0.02)
    raise AssertionError(jobs.get(job.id))


def test_a_job_runs_tells_how_far_it_is_and_leaves_a_result(tmp_path: Path) -> None:
    """Progress and result are what the process wrote; before it ends there is no result."""
    jobs = Jobs(tmp_path)
    job = begin(jobs, "wait")
    assert job.state == "running"
    with pytest.raises(MissingError):
        job.result()
    (job.folder / "go").touch()
    done = until(jobs, job, "done")
    assert done.progress == {"done": 1, "total": 2}
    assert done.result() == {"answer": 42}
    assert [one.id for one in jobs.all("test")] == [job.id]
    assert jobs.all("other") == ()


def test_another_server_finds_what_still_runs(tmp_path: Path) -> None:
    """Whether it lives is told by its lock: a server that was started later sees it run, and can stop it."""
    first = Jobs(tmp_path)
    job = begin(first, "wait")
    later = Jobs(tmp_path)
    assert later.get(job.id).state == "running"
    later.stop(job.id)
    assert until(later, job, "stopped").state == "stopped"
    assert until(first, job, "stopped").state == "stopped"
    later.stop(job.id)  # again changes nothing


def test_a_stopped_job_goes_on_in_its_own_folder(tmp_path: Path) -> None:
    """Going on runs the command again over what is there; a running job is not begun twice."""
    jobs = Jobs(tmp_path)
    job = begin(jobs, "wait")
    command = [sys.executable, "-c", WORKER, "{job}", "end"]
    with pytest.raises(ConflictError):
        jobs.again(job.id, command)
    jobs.stop(job.id)
    jobs.again(job.id, command)
    assert until(jobs, job, "done").result() == {"answer": 42}


def test_a_failure_keeps_what_it_printed(tmp_path: Path) -> None:
    """A status other than 0 is a failure, and the end of its output is kept."""
    jobs = Jobs(tmp_path)
    failed = until(jobs, begin(jobs, "fail"), "failed")
    assert failed.output().strip() == "it broke"


def test_only_so_many_run_at_once_and_strange_names_find_nothing(tmp_path: Path) -> None:
    """A third one is refused; a path in place of an id is not a job."""
    jobs = Jobs(tmp_path / "jobs")
    running = [begin(jobs, "wait", n) for n in (1, 2)]
    with pytest.raises(ConflictError, match="2 jobs"):
        begin(jobs, "wait", 3)
    for job in running:
        jobs.stop(job.id)
    outside = tmp_path / "job.json"
    outside.write_text(json.dumps({"id": "x", "kind": "k", "title": "t", "begun_at_ns": 0, "spec": {}}))
    for name in ("..", "../jobs", "job_0", "", "job_" + "0" * 16, f"{os.sep}tmp"):
        with pytest.raises(MissingError):
            jobs.get(name)


@pytest.mark.parametrize("text", ["", "-1", "1.5", "1e3", "ten", "11", "9" * 30, "٣"])
def test_numbers_of_forms_are_whole_and_in_range(text: str) -> None:
    """Anything but digits of a number in range is refused with its value."""
    with pytest.raises(HeadwaterError, match="days is"):
        whole(text, "days", 0, 10)
    assert whole(" 7 ", "days", 0, 10) == 7
