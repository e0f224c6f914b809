"""Hydra's launchers ``basic``, ``local`` and ``ray``: cells one after the other, in parallel on this machine, as tasks
of a Ray cluster.

Their settings are in conf/hydra/launcher. Hydra takes launchers from packages named ``hydra_plugins`` only. Its own
``basic`` waits where another process is at what a cell needs, although other cells could be begun; its own for one
machine, joblib, gives up the whole sweep when a worker is killed, as the system does when memory runs out; its own
for Ray needs versions of cloudpickle and dateutil that others no longer go with.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.conf import HydraConf
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from udpbench.commands.machine import LostGpu, let_go
from udpbench.core.errors import ConfigError, check_whole

Job = dict[str, Any]  # the configuration of one, resolved: without Hydra's objects, which not every pickle takes
Ended = JobReturn | str | LostGpu  # the result of a job, or why there is none
LOST = (BrokenProcessPool, SystemExit)  # of a worker that was killed, or asked to end by somebody else
KILLED = "was killed, as the system does when memory runs out"
FAULTS = 2  # processes that lost a GPU before those that are started avoid it: one may have been the cell's fault


class _Jobs(Launcher):
    """Jobs of a sweep; one whose worker is lost for good is a failed one, and the others go on."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what a job is made of."""
        self.context, self.loader, self.config = hydra_context, hydra_context.config_loader, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Run the jobs; their results in the order in which they were given."""
        setup_globals()
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        jobs = {initial_job_idx + i: list(words) for i, words in enumerate(job_overrides)}
        found = self.run(jobs)
        return [end if isinstance(end, JobReturn) else self._lost(n, jobs[n], end) for n, end in sorted(found.items())]

    def run(self, jobs: Mapping[int, list[str]]) -> dict[int, Ended]:
        """How each job has ended, by its number; ``jobs``: their words."""
        raise NotImplementedError

    def configured(self, number: int, words: list[str]) -> DictConfig:
        """The configuration of a job."""
        job = self.loader.load_sweep_config(self.config, words)
        with open_dict(job):
            job.hydra.job.id, job.hydra.job.num = f"{job.hydra.job.name}_{number}", number
            job.hydra.runtime.output_dir = str(Path(job.hydra.sweep.dir) / job.hydra.sweep.subdir)
        return job

    def job(self, number: int, words: list[str]) -> Job:
        """A job, which ``_run`` runs."""
        return OmegaConf.to_container(self.configured(number, words), resolve=True)  # type: ignore[return-value]

    def _lost(self, number: int, words: list[str], why: str | LostGpu) -> JobReturn:
        from udpbench.commands.run import give_up

        give_up(_composed(self.job(number, words)), f"its worker {why}", recorded=isinstance(why, LostGpu))
        return JobReturn(status=JobStatus.COMPLETED)  # the sweep knows by then, and ends as it does for any failed cell


class _Turns:
    """Jobs in the order in which they are begun: as given, but those that other processes are at come back after the
    others have had a turn."""

    def __init__(self, jobs: Iterable[int]) -> None:
        self.waiting = deque(jobs)
        self.done: dict[int, list[str]] = {}  # keys of stages that were done in a job before it was left
        self.in_vain = 0  # jobs in a row that nothing could be done of

    def take(self, begun: int = 0) -> tuple[int, dict[str, Any]]:
        """The next job and the words of ``udpbench.commands.run.attempt``; it is waited in if none of those that are
        left could be gone on with. ``begun``: how many of the others may not have begun although they were taken."""
        number = self.waiting.popleft()
        others = len(self.waiting) + begun
        patient = not others or self.in_vain > others
        return number, {"patient": patient, "before": self.done.get(number, [])}

    def came_back(self, number: int, ended: JobReturn) -> bool:
        """Whether the job was left for now; then its turn comes again."""
        if ended.status != JobStatus.COMPLETED or ended.return_value is None:
            self.in_vain = 0
            return False
        before, self.done[number] = len(self.done.get(number, [])), ended.return_value
        self.in_vain = 0 if len(ended.return_value) > before else self.in_vain + 1
        self.waiting.append(number)
        return True


class BasicLauncher(_Jobs):
    """One job after the other, in this process."""

    def run(self, jobs: Mapping[int, list[str]]) -> dict[int, Ended]:
        """As Hydra's own does it."""
        turns, found = _Turns(jobs), dict[int, Ended]()
        while turns.waiting:
            number, words = turns.take()
            ended = _run(self.configured(number, jobs[number]), words, self.context)
            if not turns.came_back(number, ended):
                found[number] = ended
        return found


class LocalLauncher(_Jobs):
    """``n_jobs``: cells at a time; ``max_retries``: how often a cell whose process was killed, or has lost its GPU,
    begins again."""

    def __init__(self, n_jobs: int, max_retries: int) -> None:
        check_whole("hydra.launcher.n_jobs", n_jobs, 1)
        check_whole("hydra.launcher.max_retries", max_retries, 0)
        self.n_jobs, self.max_retries = n_jobs, max_retries

    def run(self, jobs: Mapping[int, list[str]]) -> dict[int, Ended]:
        """Each process is a pool of its own: one that is killed takes none of the others with it. One that has lost
        its GPU is replaced, as a killed one is: it would fail every further cell."""
        turns, kills, faults = _Turns(jobs), dict.fromkeys(jobs, 0), Counter[str]()
        found: dict[int, Ended] = {}
        at_once = min(self.n_jobs, len(jobs))
        idle = [_pool() for _ in range(at_once)]
        busy: dict[Future[JobReturn], tuple[int, ProcessPoolExecutor]] = {}
        before = signal.signal(signal.SIGTERM, _end)
        try:
            while turns.waiting or busy:
                while turns.waiting and idle:
                    (number, words), pool = turns.take(), idle.pop()
                    words |= {"beside": at_once, "again": True, "avoid": [g for g, n in faults.items() if n >= FAULTS]}
                    busy[pool.submit(_run, self.job(number, jobs[number]), words)] = number, pool
                for done in wait(busy, return_when=FIRST_COMPLETED).done:
                    number, pool = busy.pop(done)
                    if not isinstance(end := done.exception(), LOST):
                        if not turns.came_back(number, ended := done.result()):
                            found[number] = ended
                    else:
                        lost = end if isinstance(end, LostGpu) else None
                        faults.update([lost.gpu] if lost else [])
                        pool.shutdown(wait=False)
                        pool, kills[number] = _pool(), kills[number] + 1
                        if kills[number] <= self.max_retries:
                            sys.stderr.write(f"[{number}] its worker {lost or KILLED}; it begins again\n")
                            turns.waiting.appendleft(number)
                        else:
                            found[number] = lost or f"{KILLED}, {kills[number]} times"
                    idle.append(pool)
        finally:
            for process in multiprocessing.active_children() if busy else ():  # interrupted: they write checkpoints
                process.terminate()
            for pool in [*idle, *(pool for _, pool in busy.values())]:
                pool.shutdown()
            signal.signal(signal.SIGTERM, before)
        return found


def _end(number: int, frame: FrameType | None) -> None:
    """As Ctrl-C, so that the processes are asked to end, and waited for."""
    sys.exit(128 + number)


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin)


def _begin() -> None:
    """In a process of its own, which writes a checkpoint if the main one has ended."""
    from udpbench.commands.signals import leave_to_parent

    leave_to_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))


class RayLauncher(_Jobs):
    """``init``: words of ``ray.init``; ``task``: of ``ray.remote``."""

    def __init__(self, init: Mapping[str, Any], task: Mapping[str, Any]) -> None:
        self.init, self.task = dict(init), dict(task)

    def run(self, jobs: Mapping[int, list[str]]) -> dict[int, Ended]:
        """Ray sees to workers that are lost, as ``task.max_retries`` says, and to which task begins when: one that
        other processes are at goes to the end of its queue."""
        import ray

        ray.init(**{"ignore_reinit_error": True} | self.init)
        idle_gpus = 0 if self.task.get("num_gpus") else ray.cluster_resources().get("GPU", 0)
        remote = ray.remote(**self.task)(_run)
        turns, tasks, found = _Turns(jobs), dict[Any, int](), dict[int, Ended]()
        while turns.waiting or tasks:
            while turns.waiting:
                number, words = turns.take(begun=len(tasks))
                job = self.job(number, jobs[number])
                if idle_gpus and job["runtime"]["device"] != "cpu":  # num_gpus is of this machine, which has none
                    what = f"hydra.launcher.task.num_gpus is 0, and the cluster has {idle_gpus:g} GPUs"
                    raise ConfigError(f"{what}; give it, such as 1 or 0.25, or say runtime.device=cpu")
                tasks[remote.remote(job, words)] = number
            (done,), _ = ray.wait(list(tasks))
            number = tasks.pop(done)
            try:
                if not turns.came_back(number, ended := ray.get(done)):
                    found[number] = ended
            except ray.exceptions.RayError as error:
                found[number] = f"was lost: {str(error).splitlines()[0]}"
        return found


def _run(
    job: Job | DictConfig, words: Mapping[str, Any] | None = None, context: HydraContext | None = None
) -> JobReturn:
    """One job, in a worker or, in Hydra's ``context``, in this process; ``words``: of ``attempt``."""
    from udpbench.commands.run import attempt

    setup_globals()
    ended = run_job(
        hydra_context=context or HydraContext(config_loader=None, callbacks=Callbacks()),  # type: ignore[arg-type]
        config=job if isinstance(job, DictConfig) else _composed(job),
        task_function=partial(attempt, **words or {}),
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    ended.cfg = ended.hydra_cfg = None  # nobody asks for them, and a sweep keeps how all its jobs have ended
    let_go()
    return ended


def _composed(job: Job) -> DictConfig:
    """The configuration as Hydra knows it."""
    config = OmegaConf.create({key: value for key, value in job.items() if key != "hydra"})
    config.hydra = OmegaConf.structured(HydraConf)  # by whose type Hydra knows its node
    with open_dict(config.hydra):
        config.hydra.merge_with(job["hydra"])
    return config
