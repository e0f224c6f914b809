"""Hydra's launcher ``ray``: every cell is a task of a Ray cluster (settings: conf/hydra/launcher/ray.yaml).

Hydra takes launchers from packages named ``hydra_plugins`` only. Its own for Ray needs versions of cloudpickle and
dateutil that others no longer go with.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


class RayLauncher(Launcher):
    """``init``: words of ``ray.init``; ``task``: of ``ray.remote``."""

    def __init__(self, init: Mapping[str, Any], task: Mapping[str, Any]) -> None:
        self.init, self.task = dict(init), dict(task)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what a job is made of."""
        self.context, self.function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Run the jobs; one whose worker is lost for good is a failed one, and the others go on."""
        import ray

        setup_globals()
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        ray.init(**{"ignore_reinit_error": True} | self.init)
        remote = ray.remote(**self.task)(_run)
        common = ray.put((self.context, self.config, self.function, Singleton.get_state()))
        jobs = [remote.remote(common, list(words), initial_job_idx + i) for i, words in enumerate(job_overrides)]
        return [self._result(job, initial_job_idx + i) for i, job in enumerate(jobs)]

    def _result(self, job: Any, number: int) -> JobReturn:
        import ray

        from udpbench.commands.run import note_failure

        try:
            return ray.get(job)
        except ray.exceptions.RayError as error:
            folder = Path(self.config.hydra.sweep.dir) / str(number)
            sys.stderr.write(f"[{number}] error: its worker was lost: {str(error).splitlines()[0]}\n")
            note_failure(folder, self.config.hydra.callbacks.sweep.id, 1)
            return JobReturn()


def _run(
    common: tuple[HydraContext, DictConfig, TaskFunction, Mapping[Any, Any]], words: list[str], number: int
) -> JobReturn:
    """One job, in a worker of Ray's."""
    context, config, function, state = common
    setup_globals()
    Singleton.set_state(dict(state))
    job = context.config_loader.load_sweep_config(config, words)
    with open_dict(job):
        job.hydra.job.id, job.hydra.job.num = f"{job.hydra.job.name}_{number}", number
    return run_job(
        hydra_context=context,
        config=job,
        task_function=function,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
