"""Workers of one machine take one GPU each, the idlest first; several share one when there are more of them. What is
done where torch cannot use the GPU that is there, and where a process has lost its own."""

from __future__ import annotations

import gc
import os
import pickle
import weakref
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Command
from hydra.core.utils import JobReturn, JobStatus
from shared import composed, on
from test_stage import fork, wait_for

from hydra_plugins import udpbench_launchers
from udpbench.benchmark.measuring import measured
from udpbench.commands import doctor, machine
from udpbench.core import memory
from udpbench.core.device import prepare_device
from udpbench.core.errors import ConfigError
from udpbench.interfaces import Protection
from udpbench.models.networks import own_generators
from udpbench.results.record import read_records


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(machine.VISIBLE, raising=False)


def worker(given, go: Path) -> None:
    machine.claim_gpu(["0", "1", "2"])
    given.put((os.getpid(), os.environ[machine.VISIBLE]))
    machine.claim_gpu([os.environ[machine.VISIBLE]])  # the worker's next cell
    wait_for(go)


def test_each_worker_has_a_gpu_and_what_an_ended_one_had_is_taken_next(tmp_path):
    given, go = fork.SimpleQueue(), tmp_path / "go"
    first = [fork.Process(target=worker, args=(given, go)) for _ in range(6)]
    for process in first:
        process.start()
    has = dict(given.get() for _ in first)
    assert Counter(has.values()) == {"0": 2, "1": 2, "2": 2}
    freed = Counter(has[process.pid] for process in first[:2])
    for process in first[:2]:  # however it ends
        process.kill()
        process.join()
    further = [fork.Process(target=worker, args=(given, go)) for _ in range(2)]
    for process in further:
        process.start()
    assert Counter(gpu for _, gpu in (given.get() for _ in further)) == freed
    go.touch()
    for process in [*first[2:], *further]:
        process.join(20)
        assert process.exitcode == 0


def test_one_gpu_or_none_is_left_as_it_is(monkeypatch):
    for among in ([], ["3"]):
        machine.claim_gpu(among)
    assert machine.VISIBLE not in os.environ
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert machine.gpus() == ["0", "1"]
    monkeypatch.setenv(machine.VISIBLE, "GPU-a,GPU-b")
    assert machine.gpus() == ["GPU-a", "GPU-b"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (machine.places(), machine.places(4), machine.share_of_gpu(4)) == (2, 8, 0.25)


@pytest.mark.parametrize(("avoid", "taken"), [([], "0"), (["0"], "1"), (["1"], "0"), (["0", "1"], "0")])
def test_a_gpu_that_is_to_be_avoided_is_taken_only_if_there_is_no_other(monkeypatch, avoid, taken):
    monkeypatch.setattr(machine, "_claims", [])
    monkeypatch.setenv(machine.VISIBLE, "0,1")  # put back afterwards
    machine.claim_gpu(["0", "1"], avoid)
    assert os.environ[machine.VISIBLE] == taken
    for claim in machine._claims:
        claim.release()


def test_gpus_are_counted_without_cuda_which_would_read_its_variable_too_early(monkeypatch):
    """The driver reads CUDA_VISIBLE_DEVICES once, when CUDA is first asked for anything: a claim must come before."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("CUDA was asked"))
    assert machine.gpus() == ["0", "1"]


# -- a GPU that torch cannot use ---------------------------------------------------------------------------------------


@pytest.fixture
def too_old(monkeypatch):
    """A GPU is counted, and CUDA cannot begin to be used, as with a driver older than torch."""

    def fails(*given: object) -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "_lazy_init", fails)


def test_a_gpu_that_cannot_be_used_is_no_place_for_a_cell(too_old, monkeypatch):
    monkeypatch.setattr(machine, "room", lambda: 5)
    assert (machine.places(4), machine.share_of_gpu(), machine.usable_gpus()) == (5, 0, [])


def test_the_cpu_is_not_taken_in_its_place_without_a_word(too_old):
    with pytest.raises(
        ConfigError,
        match=r"runtime.device: there is a GPU, .* \(The NVIDIA driver .* too old\); say runtime.device=cpu",
    ):
        prepare_device("auto")
    assert prepare_device("cpu").type == "cpu"


def test_torch_s_generators_are_put_back_without_it(too_old):
    before = torch.get_rng_state()
    with own_generators():
        torch.manual_seed(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_doctor_says_that_it_cannot_be_used_and_what_a_cell_would_do(too_old, tiny):
    said = dict(doctor._machine(composed(tiny)))
    assert said["GPU"].startswith("there is a GPU, but torch, made for CUDA ")
    assert said["a cell would use"].endswith("say runtime.device=cpu for the CPU")
    assert dict(doctor._machine(composed(tiny, "runtime.device=cpu")))["a cell would use"] == "cpu"


@pytest.mark.filterwarnings("error")
def test_float32_is_float32_whatever_the_process_began_with():
    """As TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 has it, for which torch must be started."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    assert torch.get_float32_matmul_precision() == "high"
    prepare_device("cpu")
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


# -- a GPU that was lost -----------------------------------------------------------------------------------------------

ACCELERATOR_ERROR = vars(torch).get("AcceleratorError", RuntimeError)  # an older torch raises the latter
ASSERTION = "CUDA error: device-side assert triggered"


def raised_by(error: Exception) -> Exception:
    """``error`` in the words of another one."""
    try:
        raise ValueError("other words") from error
    except ValueError as raised:
        return raised


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError(ASSERTION), True),
        (ACCELERATOR_ERROR(ASSERTION), True),
        (ConfigError("runtime.device: 'cuda' cannot be used (CUDA error: uncorrectable ECC error)"), True),
        (raised_by(RuntimeError(ASSERTION)), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), True),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (ACCELERATOR_ERROR("CUDA error: out of memory"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), False),
        (ConfigError("runtime.device: 'cuda:9' cannot be used (CUDA error: invalid device ordinal)"), False),
        (RuntimeError("shape '[2]' is invalid"), False),
    ],
)
def test_which_errors_lose_a_gpu(error, lost):
    assert memory.lost_gpu(error) is lost


def test_a_lost_gpu_comes_to_another_process_as_it_is():
    lost = pickle.loads(pickle.dumps(machine.LostGpu("3", "why")))
    assert (lost.gpu, lost.reason, lost.code, str(lost)) == ("3", "why", 1, "lost GPU 3 (why)")
    assert str(machine.LostGpu("", "why")) == "lost its GPU (why)"


class Breaks(Protection):
    """Its GPU fails, ``times`` times in all and in every process only once and for all, as after an assertion."""

    def __init__(self, times: int, mark: str) -> None:
        self.times, self.mark = times, mark

    def protect(self, owner, budget, surrogate, run):
        if os.environ.get("UDPBENCH_TEST_BROKEN"):
            raise ACCELERATOR_ERROR("CUDA error: of a call before")
        if self.times and len(list(Path(self.mark).glob(f"{self.times}-*"))) < self.times:
            (Path(self.mark) / f"{self.times}-{os.getpid()}").touch()
            os.environ["UDPBENCH_TEST_BROKEN"] = "1"
            raise ACCELERATOR_ERROR(ASSERTION)
        return [1 - x for x in owner.images]


def grid(tiny: Path, tmp_path: Path, times: str, *words: str) -> tuple[int | None, str]:
    """The status of a grid of cells whose protections break their processes so often, and what it said."""
    (tmp_path / "mark").mkdir()
    small = ["data.size=16", "data.train=2", "data.reference=2", "data.validation=0", "data.heldout=2", "task.steps=2",
             "task.pictures=2", "task.sample_steps=1", "track=none", "attack=none", "arms=[protected]", "budget.eps=128",
             "runtime.device=cpu", "runtime.threads=1", "runtime.workers=1"]  # fmt: skip
    own = [
        "protect=none",
        f"protect._target_={__name__}.Breaks",
        f"+protect.times={times}",
        f"+protect.mark={tmp_path / 'mark'}",
    ]
    command = Command("-m", *on(tiny), *small, *own, f"runtime.out={tmp_path / 'out'}", f"hydra.sweep.dir={tmp_path / 'sweep'}",
                      *words, path=(Path(__file__).parent,))  # fmt: skip
    status, _, said = command.finish()
    return status, said


class InThisProcess:
    """A pool of one process, in its place."""

    def submit(self, do: Callable[..., Any], *given: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(do(*given))
        except BaseException as error:
            future.set_exception(error)
        return future

    def shutdown(self, wait: bool = True) -> None:
        pass


def test_the_cell_of_a_lost_gpu_begins_again_in_another_process_and_later_ones_avoid_the_gpu(monkeypatch, capsys):
    """Cell 0 loses GPU a, then GPU b, then is done; cell 1 loses GPU a again and again."""
    pools, ended = [], JobReturn(status=JobStatus.COMPLETED)
    losses, avoided = {0: ["a", "b"], 1: ["a", "a", "a"], 2: []}, []

    def run(number: int, words: dict[str, Any]) -> JobReturn:
        assert words["again"]
        avoided.append((number, words["avoid"]))
        if losses[number]:
            raise machine.LostGpu(losses[number].pop(0), "why")
        return ended

    monkeypatch.setattr(udpbench_launchers, "_run", run)
    monkeypatch.setattr(udpbench_launchers, "_pool", lambda: pools.append(InThisProcess()) or pools[-1])
    launcher = udpbench_launchers.LocalLauncher(n_jobs=1, max_retries=2)
    monkeypatch.setattr(launcher, "job", lambda number, words: number)
    found = launcher.run({0: [], 1: [], 2: []})
    assert found[0] is found[2] is ended
    assert str(found[1]) == "lost GPU a (why)"
    assert len(pools) == 1 + 5, "a new process after each loss"
    assert avoided == [(0, []), (0, []), (0, []), (1, []), (1, ["a"]), (1, ["a"]), (2, ["a"])]
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"[{n}] its worker lost GPU {gpu} (why); it begins again" for n, gpu in ((0, "a"), (0, "b"), (1, "a"), (1, "a"))
    ]


@pytest.mark.slow
def test_a_worker_that_has_lost_its_gpu_takes_no_further_cell(tiny, tmp_path):
    """Of two cells on one worker, the first breaks it twice."""
    status, said = grid(
        tiny, tmp_path, "2,0", "hydra/launcher=local", "hydra.launcher.n_jobs=1", "hydra.launcher.max_retries=1"
    )
    why = f"its worker lost its GPU ({ACCELERATOR_ERROR.__name__}: {ASSERTION}"
    assert said.count(f"[0] {why}") == said.count("it begins again\n") == 1, said
    assert "of a call before" not in said
    assert status == 1
    assert f"1 of 2 cells failed:\n  +protect.times=2: {why}" in said
    records = {r["config"]["protect"]["times"]: r for r in read_records(tmp_path / "out" / "records")}
    assert {times: r["status"] for times, r in records.items()} == {0: "ok", 2: "failed"}
    assert records[2]["error"].startswith("Traceback")
    assert ASSERTION in records[2]["error"], "of the process itself, which says where"


@pytest.mark.slow
def test_a_sweep_in_one_process_ends_when_that_has_lost_its_gpu(tiny, tmp_path):
    status, said = grid(tiny, tmp_path, "1,0")
    assert status == 1
    assert "this process has lost its GPU: every further cell would fail; the same command goes on in a new one" in said
    assert [r["config"]["protect"]["times"] for r in read_records(tmp_path / "out" / "records")] == [1]
    assert "of a call before" not in said


# -- memory that others could have -------------------------------------------------------------------------------------


def test_what_a_stage_freed_is_given_back_when_it_ends(monkeypatch, tmp_path):
    """Also when it fails; not where CUDA is not in use, which it would begin to be."""
    called = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: called.append(True))
    with measured(torch.device("cpu"), tmp_path / "spent"):
        pass
    assert not called
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with measured(torch.device("cpu"), tmp_path / "spent"):
        assert not called
    assert len(called) == 1
    with pytest.raises(OSError, match="full"), measured(torch.device("cpu"), tmp_path / "spent"):
        raise OSError("full")
    assert len(called) == 2


UNETS: weakref.WeakSet = weakref.WeakSet()


class Counts(Protection):
    """Says how many of the UNets that it was ever given are there; a cell with 100 then fails."""

    needs = {"latent"}

    def __init__(self, cell: int, mark: str) -> None:
        self.cell, self.mark = cell, mark

    def protect(self, owner, budget, surrogate, run):
        gc.disable()  # Python's own search may come in between, or not
        torch.cuda.is_initialized = lambda: True  # in a process of its own
        UNETS.add(surrogate.pipe.unet)
        (Path(self.mark) / f"{self.cell}-{len(UNETS)}").touch()
        if self.cell == 100:
            raise RuntimeError("a failure")
        return list(owner.images)


@pytest.mark.slow
def test_models_of_the_cell_before_are_let_go_whether_it_failed_or_not(tiny, tmp_path):
    status, said = grid(
        tiny, tmp_path, "0", f"protect._target_={__name__}.Counts", "~protect.times", "+protect.cell=1,100,2"
    )
    assert status == 1, said
    assert sorted(p.name for p in (tmp_path / "mark").iterdir()) == ["1-1", "100-1", "2-1"]


@pytest.mark.parametrize(("cores", "free", "wanted"), [(8, 1e12, 8), (8, 5e9, 2), (4, 1e9, 1)])
def test_without_a_gpu_there_is_room_for_as_many_as_cores_and_memory_allow(monkeypatch, cores, free, wanted):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.setattr(machine, "free_memory", lambda: free)
    assert machine.places() == machine.places(4) == wanted
    assert machine.share_of_gpu() == 0
