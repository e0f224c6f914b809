"""Jobs of a real Slurm on this machine alone, which ``make test-slurm`` starts: grids, requeueing, dependencies."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from shared import on

from udpbench.results.record import read_records

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="no Slurm here: make test-slurm starts one"),
]
# One core, no GPU, checkpoints far apart: what a job goes on from is the checkpoint that it wrote when it was told.
JOB = ["hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=null", "hydra.launcher.timeout_min=30"]  # fmt: skip
LONG = ["task.steps=1000", "task.save_every=100000", "arms=[clean]", "attack=none", "track=jsonl"]


def words(tiny: Path, root: Path, *more: str) -> list[str]:
    """A command whose cells compute almost nothing, or what the further words say; ``more`` may begin with -m."""
    small = ["data.size=16", "data.train=2", "data.reference=2", "data.validation=0", "data.heldout=2", "task.steps=2", "task.pictures=2",
             "task.sample_steps=1", "track=none", "protect=noise", "arms=[clean,protected]", "runtime.device=cpu", "runtime.threads=1",
             "runtime.workers=1", f"runtime.out={root / 'out'}", f"hydra.sweep.dir={root / 'sweep'}"]  # fmt: skip
    multirun = more[:1] if more[:1] == ("-m",) else ()
    return [sys.executable, "-m", "udpbench", *multirun, *on(tiny), *small, *more[len(multirun) :]]


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def job(number: str) -> dict[str, str]:
    """What Slurm says of a job."""
    return dict(re.findall(r"(\S+?)=(\S*)", slurm("scontrol", "show", "job", number)))


def until(enough: Callable[[], bool], log: Path | None = None, seconds: float = 400) -> None:
    """Wait; if it takes too long, say what the job said."""
    end = time.monotonic() + seconds
    while not enough():
        assert time.monotonic() < end, log and log.exists() and log.read_text()
        time.sleep(0.3)


def begin_again(number: str, times: int = 1) -> None:
    """Wait until a job is queued again, and do without the two minutes that Slurm then leaves it alone."""
    until(lambda: job(number)["Restarts"] == str(times) and job(number)["JobState"] == "PENDING")
    slurm("scontrol", "update", f"JobId={number}", "StartTime=now")


STOPPED = "interrupted; the same command goes on where this one stopped"


def trains(root: Path, times: int = 1) -> bool:
    """Whether the job, begun so often, is in the middle of its training: it has told losses, which it does 50 at a time."""
    return sum(told.read_text().count('"event": "start"') for told in root.glob("out/cells/**/*.jsonl")) == times


def stopped(root: Path, times: int = 1) -> bool:
    """Whether jobs have said so often that they end where they can be gone on from."""
    logs = [*root.glob("sweep/.submitit/*/*_log.out"), *root.glob("log")]
    return sum(log.read_text().count(STOPPED) for log in logs) == times


def test_a_grid_runs_as_jobs_and_none_does_the_work_of_another(tiny, tmp_path):
    grid = words(
        tiny,
        tmp_path,
        "-m",
        "hydra/launcher=submitit_slurm",
        *JOB,
        "budget.eps=4,8",
        "attack=none,jpeg",
        "arms=[clean,protected,purified]",
    )
    done = subprocess.run(grid, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    records = read_records(tmp_path / "out" / "records")
    assert [r["status"] for r in records] == ["ok"] * 4
    keys = [stage["key"] for r in records for stage in r["stages"] if not stage["cached"]]
    assert len(keys) == len(set(keys)) > 0
    assert len(list(tmp_path.glob("sweep/.submitit/*/*_result.pkl"))) == 4, "each was a job of its own"


def test_a_job_told_to_end_by_submitits_signal_writes_a_checkpoint_and_goes_on_when_it_is_queued_again(tiny, tmp_path):
    grid = words(
        tiny,
        tmp_path,
        "-m",
        "hydra/launcher=submitit_slurm",
        *JOB,
        *LONG,
    )
    command = subprocess.Popen(grid, stderr=subprocess.PIPE, text=True)
    until(lambda: trains(tmp_path))
    (number,) = slurm("squeue", "--noheader", "--states=R", "--format=%i").split()
    slurm("scancel", "--signal=USR2", number)
    until(lambda: stopped(tmp_path))
    assert list(tmp_path.glob("out/store/train/*.part/checkpoint.pt"))
    begin_again(number)
    assert command.wait(400) == 0
    (log,) = [p.read_text() for p in tmp_path.glob("sweep/.submitit/*/*_log.out") if "USR2" in p.read_text()]
    assert f"SIGUSR2: {STOPPED}" in log
    assert [r["status"] for r in read_records(tmp_path / "out" / "records")] == ["ok"]


def step(root: Path) -> int:
    """At which step of its training a job has written its checkpoint."""
    (file,) = root.glob("out/store/train/*.part/checkpoint.pt")
    return int(torch.load(file, weights_only=True)["step"])


def test_a_job_that_slurm_takes_away_is_queued_again_and_goes_on(tiny, tmp_path):
    """First for another job of a partition before its own, then because somebody says so."""
    script, log = shlex.join(words(tiny, tmp_path, *LONG)), tmp_path / "log"
    number = slurm("sbatch", "--parsable", "--requeue", f"--output={log}", "--open-mode=append", "--exclusive", "--wrap", f"exec {script}")  # fmt: skip
    until(lambda: trains(tmp_path), log)
    slurm("sbatch", "--wait", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap", "true")
    until(lambda: stopped(tmp_path), log)
    first = step(tmp_path)
    begin_again(number)
    until(lambda: trains(tmp_path, 2), log)
    slurm("scontrol", "requeue", number)
    until(lambda: stopped(tmp_path, 2), log)
    assert 0 < first < step(tmp_path) < 1000
    begin_again(number, 2)
    until(lambda: job(number)["JobState"] == "COMPLETED", log)
    assert log.read_text().count(f"SIGTERM: {STOPPED}") == 2
    (record,) = read_records(tmp_path / "out" / "records")
    assert record["status"] == "ok"


FIRST = """
first=$(%(python)s -c 'import json, sys; print(*json.load(open(sys.argv[1]))["first"], sep="\\n")' %(plan)s |
    while read -r words; do sbatch --parsable --output=/dev/null --wrap "%(fixed)s $words"; done | paste -sd :)
echo "$first"
"""


def test_the_cells_that_plan_calls_first_run_first(tiny, tmp_path):
    fixed, plan = words(tiny, tmp_path, "arms=[clean,protected,purified]"), tmp_path / "plan.json"
    grid = ["-m", "attack=none,jpeg"]
    slurm(*fixed[:3], "plan", "--shared", "--json", str(plan), *grid, *fixed[3:])
    cells = json.loads(plan.read_text())["first"]
    assert len(cells) == 1
    first = slurm("bash", "-c", FIRST % {"python": sys.executable, "plan": plan, "fixed": shlex.join(fixed)})
    assert len(first.split(":")) == len(cells)
    after = [
        "hydra/launcher=submitit_slurm",
        *JOB,
        f"+hydra.launcher.additional_parameters.dependency='afterany:{first}'",
    ]
    done = subprocess.run([*fixed[:3], *grid, *fixed[3:], *after], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    ended = max(job(number)["EndTime"] for number in first.split(":"))
    jobs = {p.name.split("_")[0] for p in tmp_path.glob("sweep/.submitit/*") if p.is_dir()}
    assert min(job(number)["StartTime"] for number in jobs) >= ended
    records = read_records(tmp_path / "out" / "records")
    assert [r["status"] for r in records] == ["ok"] * 2
    shared = {row["key"] for row in json.loads(plan.read_text())["shared"]}
    again = [stage for r in records for stage in r["stages"] if stage["key"] in shared and not stage["cached"]]
    assert not again, "what is shared was there before"
