"""A grid of four cells as tasks of a Ray cluster on this machine."""

from __future__ import annotations

import subprocess
import sys

import pytest
from shared import on
from test_sweep import sweep_beside_another_process

from udpbench.results.record import read_records


@pytest.mark.slow
def test_a_grid_runs_on_ray_and_no_task_does_the_work_of_another(tiny, tmp_path):
    pytest.importorskip("ray", reason="needs pip install 'udpbench[ray]'; make test-slurm installs it")
    words = [*on(tiny), "data.size=16", "data.train=2", "data.reference=2", "data.validation=0", "data.heldout=2", "task.steps=2", "task.pictures=2",
             "task.sample_steps=1", "track=none", "protect=noise", "arms=[clean,protected,purified]", "runtime.device=cpu", "runtime.threads=1",
             f"runtime.out={tmp_path / 'out'}", "budget.eps=4,8", "attack=none,jpeg", "hydra/launcher=ray", "hydra.launcher.init.address=local",
             "+hydra.launcher.init.include_dashboard=false", "+hydra.launcher.init.num_cpus=2"]  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "udpbench", "-m", *words], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    records = read_records(tmp_path / "out" / "records")
    assert [r["status"] for r in records] == ["ok"] * 4
    keys = [stage["key"] for r in records for stage in r["stages"] if not stage["cached"]]
    assert len(keys) == len(set(keys)) > 0


@pytest.mark.slow
def test_a_task_that_another_process_is_at_goes_to_the_end_of_the_queue(tiny, graph, tmp_path):
    pytest.importorskip("ray", reason="needs pip install 'udpbench[ray]'; make test-slurm installs it")
    sweep_beside_another_process(tiny, graph, tmp_path, "hydra/launcher=ray", "hydra.launcher.init.address=local",
                                 "+hydra.launcher.init.include_dashboard=false", "+hydra.launcher.init.num_cpus=1")  # fmt: skip


@pytest.mark.slow
def test_a_launcher_that_is_not_installed_is_one_line(tmp_path, monkeypatch, capsys):
    from importlib.metadata import PackageNotFoundError

    from omegaconf import OmegaConf

    from udpbench.commands import run

    def none(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(run, "version", none)
    for launcher, said in {
        "ray": "needs ray: pip install 'udpbench[ray]'",
        "submitit_slurm": "needs hydra-submitit-launcher: pip install 'udpbench[slurm]'",
    }.items():
        with pytest.raises(SystemExit, match="2"):
            run.Sweep("0").on_multirun_start(
                OmegaConf.create({"hydra": {"runtime": {"choices": {"hydra/launcher": launcher}}}})
            )
        assert capsys.readouterr().err == f"error: hydra/launcher={launcher} {said}\n"
