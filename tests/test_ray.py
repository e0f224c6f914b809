"""A grid of four cells as tasks of a Ray cluster on this machine."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
from hydra.core.utils import JobReturn, JobStatus
from shared import on
from test_sweep import sweep_beside_another_process

from hydra_plugins.udpbench_launchers import RayLauncher
from udpbench.core.errors import ConfigError
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


@pytest.mark.parametrize(
    ("gpus", "share", "device", "begun"), [(4, 0, "auto", 0), (4, 0, "cpu", 2), (0, 0, "auto", 2), (4, 0.25, "auto", 2)]
)
def test_gpus_of_a_cluster_are_not_left_idle_without_a_word(monkeypatch, gpus, share, device, begun):
    """What ``task.num_gpus`` is made of are the GPUs of the machine that the grid is started on. A stand-in for Ray."""
    submitted = []

    def remote(**task):
        return lambda do: SimpleNamespace(remote=lambda job, words: submitted.append(job) or len(submitted))

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(
        init=lambda **given: None, cluster_resources=lambda: {"CPU": 8.0} | ({"GPU": float(gpus)} if gpus else {}),
        remote=remote, wait=lambda tasks: (tasks[:1], tasks[1:]), get=lambda task: JobReturn(status=JobStatus.COMPLETED),
        exceptions=SimpleNamespace(RayError=RuntimeError),
    ))  # fmt: skip
    launcher = RayLauncher(init={}, task={"num_gpus": share})
    monkeypatch.setattr(launcher, "job", lambda number, words: {"runtime": {"device": device}})
    if begun:
        assert sorted(launcher.run({0: [], 1: []})) == [0, 1]
    else:
        with pytest.raises(
            ConfigError, match=r"^hydra.launcher.task.num_gpus is 0, and the cluster has 4 GPUs; give it"
        ):
            launcher.run({0: [], 1: []})
    assert len(submitted) == begun


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
