"""Stages: keys, doing once, publishing whole, resuming, sharing between real processes."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import Timeout
from filelock._identity import host_name

from udpbench.benchmark import store as store_module
from udpbench.benchmark.facts import FACTS
from udpbench.benchmark.stage import Stage, hash_of
from udpbench.benchmark.store import Store
from udpbench.core import digest
from udpbench.core.atomic import atomic_write
from udpbench.core.errors import Busy, Stopped
from udpbench.interfaces import Log

fork = multiprocessing.get_context("fork")  # children start without importing torch anew


def write(text: str, calls: list[str] | None = None):
    """Work that writes ``text`` and what its parents hold."""

    def work(out, parents, run):
        if calls is not None:
            calls.append(text)
        held = "".join((p / "text").read_text() for _, p in sorted(parents.items()))
        (out / "text").write_text(f"{text}{held}")

    return work


def make(name="a", text="x", parents=None, settings=None, calls=None, seed=0, resumable=False, work=None):
    settings = {"text": text} if settings is None else settings
    return Stage(name, settings, work or write(text, calls), parents or {}, seed, resumable=resumable)


def wait_for(path: Path, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.01)


def start(do) -> multiprocessing.Process:
    process = fork.Process(target=do)
    process.start()
    return process


# -- keys --------------------------------------------------------------------------------------------------------------


def test_a_key_is_that_of_what_the_stage_is_made_of():
    base = make(parents={"p": make("q")})
    same = Stage("a", {"text": "x"}, write("other work"), {"p": make("q")}, title="another title", resumable=True)
    assert same.key == base.key
    others = [
        make("b", parents={"p": make("q")}),
        make(text="y", parents={"p": make("q")}),
        make(seed=1, parents={"p": make("q")}),
        make(parents={"p": make("q", "y")}),
        make(parents={"p": make("q", seed=1)}),
        make(parents={"r": make("q")}),
        make(),
    ]
    assert len({s.key for s in [base, *others]}) == len(others) + 1


def test_a_key_does_not_depend_on_the_order_of_settings_but_on_their_types():
    assert make(settings={"a": 1, "b": 2}).key == make(settings={"b": 2, "a": 1}).key
    assert make(settings={"a": 1}).key != make(settings={"a": "1"}).key
    assert hash_of({"a": 1}) == "015abd7f5cc57a2d"  # another one would orphan every store
    with pytest.raises(TypeError):
        hash_of({"a": object()})


# -- doing -------------------------------------------------------------------------------------------------------------


def test_a_stage_is_done_once_and_a_later_store_finds_it(tmp_path):
    calls: list[str] = []
    a = make(calls=calls)
    b = make("b", "y", {"p": a}, calls=calls)
    store = Store(tmp_path)
    (folder,) = store.do(b)
    assert (folder / "text").read_text() == "yx"
    assert store.computed == [a.key, b.key]
    store.do(b, a)
    again = Store(tmp_path)
    assert again.do(b) == [folder]
    assert calls == ["x", "y"]
    assert again.computed == []
    assert again.missing([b, a]) == []


def test_a_stage_finished_while_its_lock_was_waited_for_is_not_done_again(tmp_path):
    calls: list[str] = []
    a, store = make(calls=calls), Store(tmp_path)
    store.do(a)
    assert store._attempt(a)  # as by a process that planned before the other one was done
    assert calls == ["x"]
    assert not store.damage(a)


def test_finished_stages_hide_their_parents(tmp_path):
    a = make()
    b, c = make("b", "y", {"p": a}), make("c", "z", {"p": a})
    store = Store(tmp_path)
    assert store.missing([b, c]) == [a, b, c]
    store.do(b)
    assert store.missing([b, c]) == [c]


def test_facts_say_what_was_done(tmp_path):
    def work(out, parents, run):
        (out / "text").write_text("x")
        run.tally("steps", 3)
        run.tally("steps", 2)
        time.sleep(0.05)

    a, store = make(work=work, seed=5), Store(tmp_path)
    store.do(a)
    facts = store.facts(a)
    assert facts["counts"] == {"steps": 5}
    assert facts["key"] == a.key
    assert facts["seed"] == 5
    assert facts["device"] == "cpu"
    assert facts["seconds"] >= 0.05
    assert facts["peak_mb"] is None or facts["peak_mb"] > 10
    assert sorted(p.name for p in store.path(a).iterdir()) == [FACTS, "text"]


def test_a_failing_work_publishes_nothing_and_can_be_done_later(tmp_path):
    def work(out, parents, run):
        (out / "half").write_text("half")
        raise RuntimeError("no")

    store = Store(tmp_path)
    with pytest.raises(RuntimeError, match="no"):
        store.do(make(work=work))
    assert not store.finished(make())
    assert not store.path(make()).exists()
    store.do(make())  # the lock is free again
    assert sorted(p.name for p in store.path(make()).iterdir()) == [FACTS, "text"]


def test_a_lock_that_the_work_waited_for_in_vain_is_its_own_error(tmp_path):
    def work(out, parents, run):
        raise Timeout("a file that the work wants")

    with pytest.raises(Timeout, match="a file that the work wants"):
        Store(tmp_path)._attempt(make(work=work))


def test_the_commit_of_a_stage_is_that_of_its_beginning(tmp_path, monkeypatch):
    commits = iter(["before", "after"])
    monkeypatch.setattr(store_module, "commit", lambda: next(commits))
    store = Store(tmp_path)
    store.do(make())
    assert store.facts(make())["commit"] == "before"


@pytest.mark.parametrize("resumable", [True, False])
def test_only_a_resumable_stage_goes_on_in_its_folder(tmp_path, resumable):
    attempts = []

    def work(out, parents, run):
        attempts.append(sorted(p.name for p in out.iterdir() if not p.name.startswith("_")))
        (out / f"part{len(attempts)}").write_text("x")
        if len(attempts) == 1:
            raise KeyboardInterrupt

    a, store = make(work=work, resumable=resumable), Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        store.do(a)
    (folder,) = store.do(a)
    assert attempts == [[], ["part1"] if resumable else []]
    assert sorted(p.name for p in folder.iterdir()) == [FACTS, *(["part1"] if resumable else []), "part2"]


def test_seconds_of_interrupted_attempts_count(tmp_path):
    attempts = []

    def work(out, parents, run):
        attempts.append(1)
        time.sleep(0.2)
        if len(attempts) == 1:
            raise KeyboardInterrupt

    a, store = make(work=work, resumable=True), Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        store.do(a)
    store.do(a)
    assert store.facts(a)["seconds"] >= 0.4


# -- content -----------------------------------------------------------------------------------------------------------


def test_damage_is_what_happens_to_a_folder(tmp_path):
    a, store = make(), Store(tmp_path)
    (folder,) = store.do(a)
    assert not store.damage(a)
    (folder / "text").write_text("y")
    assert store.damage(a)
    (folder / "text").write_text("x")
    assert not store.damage(a)
    for litter in (".DS_Store", "Thumbs.db"):  # a person looked into it
        (folder / litter).write_text("")
    assert not store.damage(a)
    (folder / "more").write_text("")
    assert store.damage(a) == "more does not belong there"


def test_what_a_file_manager_leaves_is_no_part_of_a_folder_s_digest(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "text").write_text("x")
    clean = digest.folder_digest(tmp_path)
    assert clean == digest.listed(tmp_path)[0]  # as it was before
    for litter in (".DS_Store", "sub/Thumbs.db", "sub/desktop.ini"):
        (tmp_path / litter).write_text("x")
    assert digest.folder_digest(tmp_path) == clean
    (tmp_path / "more").write_text("")
    assert digest.folder_digest(tmp_path) != clean


def flip(path: Path) -> None:
    """Another byte in the middle, the size as before."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


HARM = {
    "flip": flip,
    "truncate": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "delete": lambda path: path.unlink(),
    "exchange": lambda path: path.with_name("other.png").write_bytes(b"x"),
}
SAID = {
    "flip": "text is not what was written",
    "truncate": "text has 1 bytes, not 2",
    "empty": "text has 0 bytes, not 2",
    "delete": "text is missing",
    "exchange": "other.png does not belong there",
}


@pytest.mark.parametrize("verify", ["digest", "size"])
@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("file", ["text", FACTS])
def test_a_damaged_stage_is_put_aside_and_computed_anew_before_it_is_read(tmp_path, harm, file, verify):
    calls: list[str] = []
    a = make(text="ab", calls=calls)
    (folder,) = Store(tmp_path).do(a)
    HARM[harm](folder / file)
    harmed = {path.name: path.read_bytes() for path in folder.iterdir()}
    notes = Notes(lambda: None)
    (made,) = Store(tmp_path, log=notes, verify=verify).do(make("b", "c", {"p": a}, calls=calls))
    if (harm, file, verify) == ("flip", "text", "size"):  # all that sizes do not show
        assert (calls, notes.said) == (["ab", "c"], [])
        return
    assert (made / "text").read_text() == "cab"
    assert calls == ["ab", "ab", "c"]
    (line,), (aside,) = notes.said, (tmp_path / "damaged").iterdir()
    facts = "is missing" if harm == "delete" else "is broken"
    what = SAID[harm] if file == "text" or harm == "exchange" else f"{FACTS} {facts}"
    assert (
        line == f"a: {folder} is damaged ({what}); it is now {aside}, and the stage is computed anew where it is needed"
    )
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == harmed
    assert Store(tmp_path).missing([a]) == []


def test_a_stage_is_verified_once_in_a_process_and_only_if_it_is_read(tmp_path, monkeypatch):
    a = make()
    b, c = make("b", "y", {"p": a}), make("c", "z", {"p": a})
    Store(tmp_path).do(b)
    read: list[str] = []
    sha256 = digest._sha256
    monkeypatch.setattr(digest, "_sha256", lambda file: read.append(file.parent.parent.name) or sha256(file))
    store = Store(tmp_path)
    store.do(b)
    store.do(b)
    assert read == ["b"]
    store.do(c)
    assert sorted(read) == ["a", "b", "c"]  # what c wrote is digested when it is published


def test_every_byte_of_the_facts_counts(tmp_path):
    a, store = make(), Store(tmp_path)
    (folder,) = store.do(a)
    data = (folder / FACTS).read_bytes()
    for i in range(0, len(data), 7):
        if data[i : i + 1].strip():  # white space says nothing
            (folder / FACTS).write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
            assert store.damage(a) == f"{FACTS} is broken", data[max(i - 20, 0) : i + 20]


def test_what_older_code_finished_is_verified_by_its_digest(tmp_path):
    a, store = make(), Store(tmp_path)
    (folder,) = store.do(a)
    facts = store.facts(a)
    del facts["files"]
    (folder / FACTS).write_text(json.dumps(facts))
    assert not store.damage(a)
    (folder / "text").write_text("y")
    assert store.damage(a) == "its files are not the ones that were written"


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_equal_work_is_done_again_where_a_disk_has_no_links(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    calls: list[str] = []
    pairs = [make(text="same", settings={"way": i}) for i in range(2)]
    first, second = (make("b", "work", {"p": p}, settings={"text": "work"}, calls=calls) for p in pairs)
    monkeypatch.setattr(Path, "symlink_to", refuse)
    folders = Store(tmp_path).do(first, second)
    assert [folder.is_symlink() for folder in folders] == [False, False]
    assert len(calls) == 2


def test_what_cannot_be_read_now_is_not_damaged(tmp_path, monkeypatch):
    """A network disk that fails for a moment costs nothing that is finished."""
    a = make(text="ab")
    (folder,) = Store(tmp_path).do(a)

    def stale(path):
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    for place in ("udpbench.benchmark.store.read_facts", "udpbench.core.digest.file_digest"):
        with monkeypatch.context() as patched:
            patched.setattr(place, stale)
            with pytest.raises(OSError, match="Stale file handle"):
                Store(tmp_path).do(a)
        assert not (tmp_path / "damaged").exists()
    assert Store(tmp_path).do(a) == [folder]


def test_a_damaged_shared_folder_is_not_shared(tmp_path):
    calls: list[str] = []
    pairs = [make(text="same", settings={"way": i}) for i in range(2)]
    first, second = (make("b", "work", {"p": p}, settings={"text": "work"}, calls=calls) for p in pairs)
    store = Store(tmp_path)
    store.do(first, second)
    flip(store.path(first) / "text")
    (folder,) = Store(tmp_path).do(second)
    assert not folder.is_symlink()
    assert (folder / "text").read_text() == "worksame"
    Store(tmp_path).do(first)
    assert (store.path(first) / "text").read_text() == "worksame"
    assert len(calls) == 2, "either name is enough for the other"


def test_a_digest_that_is_remembered_wrongly_or_not_at_all_is_computed(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(digest, "SETTLED", 0)
    (tmp_path / "weights").write_bytes(bytes(1 << 24))
    cache = tmp_path / ".cache" / "udpbench" / "digests.json"
    right = digest.files_digest([tmp_path / "weights"])
    for text in ("", "[]", '{"a": 1', "\xff", json.dumps(dict.fromkeys(json.loads(cache.read_text()), 1))):
        cache.write_text(text, encoding="latin-1")
        assert digest.files_digest([tmp_path / "weights"]) == right
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert digest.files_digest([tmp_path / "weights"]) == right


def test_large_weights_unpacked_over_others_with_the_same_time_are_others(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(digest, "SETTLED", 0)
    file = tmp_path / "weights"
    file.write_bytes(bytes(1 << 24))
    before, first = file.stat(), digest.files_digest([file])
    file.write_bytes(b"1" * (1 << 24))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digest.files_digest([file]) != first


def test_small_files_are_read_once_unless_they_changed_or_may_have(tmp_path, monkeypatch):
    read, sha256 = [], digest._sha256
    monkeypatch.setattr(digest, "_sha256", lambda file: read.append(file) or sha256(file))
    file = tmp_path / "weights"
    file.write_text("a")
    first = [digest.files_digest([file]) for _ in range(2)]
    assert len(read) == 2, "it was just written"
    monkeypatch.setattr(digest, "SETTLED", 0)
    assert [digest.files_digest([file]) for _ in range(3)] == [first[0]] * 3
    assert len(read) == 3
    file.write_text("b")
    os.utime(file, ns=(0, 0))
    assert digest.files_digest([file]) != first[0]
    assert len(read) == 4


def test_what_the_process_has_verified_is_not_verified_again(tmp_path):
    a = make()
    Store(tmp_path).do(a)
    one, two, verified = Store(tmp_path), Store(tmp_path), set[str]()
    for store in (one, two):
        store.trust(verified)
    assert one.sound(a)
    flip(one.path(a) / "text")
    assert two.sound(a)
    assert not Store(tmp_path).sound(a)
    (one.path(a) / FACTS).unlink()
    assert not two.sound(a), "it is looked whether it is there"


def test_equal_inputs_made_by_different_keys_share_work(tmp_path):
    calls: list[str] = []
    one, two = make(settings={"way": 1}, calls=calls), make(settings={"way": 2}, calls=calls)  # both write "x"
    b1, b2 = (make("b", "y", {"p": p}, calls=calls) for p in (one, two))
    assert b1.key != b2.key
    store = Store(tmp_path)
    first, second = store.do(b1, b2)
    assert calls == ["x", "y", "x"]
    assert second.is_symlink()
    assert second.resolve() == first.resolve()
    assert store.finished(b2)
    assert not store.damage(b2)
    assert b2.key not in store.computed
    (third,) = store.do(make("c", "z", {"p": b2}))  # a linked folder is as good a parent
    assert (third / "text").read_text() == "zyx"


def test_a_shared_folder_that_was_removed_is_made_anew_under_either_name(tmp_path):
    calls: list[str] = []
    store = Store(tmp_path)
    pairs = [make(text="same", settings={"way": i}) for i in range(2)]
    first, second = (make("b", "work", {"p": p}, settings={"text": "work"}, calls=calls) for p in pairs)
    store.do(first, second)
    assert store.path(second).is_symlink()
    shutil.rmtree(store.path(first))
    for _ in range(2):
        (folder,) = Store(tmp_path).do(second)
        assert (folder / "text").read_text() == "worksame"
        assert not folder.is_symlink()
    assert calls == ["work", "work"]


def test_work_is_not_shared_where_anything_else_differs(tmp_path):
    calls: list[str] = []
    one, two = make(settings={"way": 1}, calls=calls), make(settings={"way": 2}, calls=calls)
    store = Store(tmp_path)
    store.do(make("b", "y", {"p": one}, calls=calls), make("b", "y", {"p": two}, calls=calls, seed=1))
    assert calls.count("y") == 2


def test_a_moved_store_keeps_its_links(tmp_path):
    one, two = make(settings={"way": 1}), make(settings={"way": 2})
    stages = [make("b", "y", {"p": p}) for p in (one, two)]
    Store(tmp_path / "here").do(*stages)
    (tmp_path / "here").rename(tmp_path / "there")
    moved = Store(tmp_path / "there")
    assert moved.missing(stages) == []
    assert not moved.damage(stages[1])


# -- processes ---------------------------------------------------------------------------------------------------------


def test_two_processes_that_want_the_same_stage_compute_it_once(tmp_path):
    log = tmp_path / "log"

    def work(out, parents, run):
        with log.open("a") as f:
            f.write(f"{os.getpid()}\n")
        time.sleep(0.5)
        (out / "text").write_text("x")

    processes = [start(lambda: Store(tmp_path / "store").do(make(work=work))) for _ in range(2)]
    for process in processes:
        process.join(20)
    assert [p.exitcode for p in processes] == [0, 0]
    assert len(log.read_text().splitlines()) == 1
    assert not Store(tmp_path / "store").damage(make())


@pytest.mark.parametrize("resumable", [True, False])
def test_the_store_of_a_killed_process_is_finished_by_the_next(tmp_path, resumable):
    calls = tmp_path / "calls"

    def first(out, parents, run):
        calls.write_text("first")
        (out / "text").write_text("x")

    def second(out, parents, run):
        if (out / "half").exists() or calls.read_text() == "second":
            (out / "text").write_text("y")
            return
        (out / "half").write_text("half")
        calls.write_text("second")
        time.sleep(60)

    a = make(work=first)
    b = make("b", "y", {"p": a}, work=second, resumable=resumable)
    process = start(lambda: Store(tmp_path / "store").do(b))
    wait_for(tmp_path / "store" / "b" / f"{b.key}.part" / "half")
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.join(20)
    store = Store(tmp_path / "store")
    assert store.finished(a)
    assert not store.finished(b)
    (folder,) = store.do(b)
    assert store.computed == [b.key]
    assert sorted(p.name for p in folder.iterdir()) == [FACTS, *(["half"] if resumable else []), "text"]
    assert list((tmp_path / "store" / "b").glob("*.part")) == []


def test_a_method_that_ends_the_process_fails_its_stage(tmp_path):
    a = make(work=lambda out, parents, run: sys.exit(3))
    with pytest.raises(RuntimeError, match=r"a: the method tried to end the process \(SystemExit 3\)"):
        Store(tmp_path).do(a)


LEFT = "filelock/2\npid={}\nhost={}\nmode=lease\ntoken=0\nduration={}\n"


@pytest.mark.parametrize("left", ["by a process that is gone", "by another host", "empty"])
def test_the_lock_of_a_holder_that_is_gone_is_taken_over(tmp_path, monkeypatch, left):
    """Also where the file system has no flock: nothing here asks for it."""

    def no_flock(*arguments):
        raise OSError(errno.ENOSYS, "flock")

    monkeypatch.setattr("fcntl.flock", no_flock)
    monkeypatch.setattr("udpbench.benchmark.leases.LEASE", 0.6)
    a, lock = make(), tmp_path / "locks"
    gone = start(lambda: None)
    gone.join()
    lock.mkdir()
    host = host_name() if left.endswith("gone") else "node-17"
    text = "" if left == "empty" else LEFT.format(gone.pid, host, 0.6)
    (lock / f"a-{a.key}.lease").write_text(text)
    notes, began = Notes(lambda: None), time.monotonic()
    (folder,) = Store(tmp_path, log=notes).do(a)
    waited = time.monotonic() - began
    assert (folder / "text").read_text() == "x"
    assert list(lock.iterdir()) == []
    if left == "by another host":
        assert 0.6 <= waited < 5
        (line,) = notes.said
        assert f"process {gone.pid} on node-17 does it; if that one is gone, it is taken over 0.6 s after" in line
    else:
        assert notes.said == []


def test_a_holder_at_work_keeps_its_lock_and_one_that_lost_it_publishes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("udpbench.benchmark.leases.LEASE", 0.6)
    began, attempts = tmp_path / "began", tmp_path / "attempts"

    def work(out, parents, run):
        with attempts.open("a") as file:
            file.write("x")
        began.write_text("")
        time.sleep(1.5)
        (out / "text").write_text("x")

    a = make(work=work)
    process = start(lambda: Store(tmp_path / "store").do(a))
    wait_for(began)
    Store(tmp_path / "store").do(a)
    process.join(20)
    assert attempts.read_text() == "x"

    def robbed(out, parents, run):
        lease = next((tmp_path / "store" / "locks").iterdir())
        lease.unlink()
        lease.write_text(LEFT.format(1, "node-17", 0.6))

    with pytest.raises(RuntimeError, match="another process took it over"):
        Store(tmp_path / "store").do(make("b", work=robbed))
    left = Store(tmp_path / "store").path(make("b")).with_suffix(".part")
    assert not (left / FACTS).exists(), "the folder is another's, who lists what is in it"
    assert not Store(tmp_path / "store").finished(make("b"))


class Notes(Log):
    """Keeps what is said; calls ``then`` each time."""

    def __init__(self, then) -> None:
        self.said: list[str] = []
        self.then = then

    def say(self, text: str) -> None:
        self.said.append(text)
        self.then()


def test_a_worker_does_another_ready_stage_before_it_waits(tmp_path):
    began, go, order = tmp_path / "began", tmp_path / "go", tmp_path / "order"

    def slow(out, parents, run):
        began.write_text("")
        wait_for(go)
        (out / "text").write_text("x")

    def quick(out, parents, run):
        order.write_text("quick while slow was held" if not go.exists() else "too late")
        (out / "text").write_text("y")

    held, other = make("held", work=slow), make("other", "y", work=quick)
    process = start(lambda: Store(tmp_path / "store").do(held))
    wait_for(began)
    notes = Notes(go.touch)  # the holder goes on once it is waited for
    store = Store(tmp_path / "store", log=notes)
    after = make("after", "z", {"p": held})
    store.do(held, after, other)
    process.join(20)
    assert process.exitcode == 0
    assert order.read_text() == "quick while slow was held"
    assert store.computed == [other.key, after.key]
    (line,) = notes.said
    assert line.startswith(f"waiting for held: process {process.pid} on ")
    assert line.endswith(f"or once {tmp_path / 'store' / 'locks' / f'held-{held.key}.lease'} is deleted")


def test_who_is_not_patient_waits_for_partners_only(tmp_path):
    store, stage = Store(tmp_path), make()
    other = make("other")
    store.patient = False
    with Store(tmp_path).leases.of(stage.name, stage.key):
        assert not store.held_by_others([stage, other])
        with pytest.raises(Busy):
            store.do(stage, other)
        assert store.computed == [other.key], "what can be done is done first"
        assert store.held_by_others([stage, other])
        store.leases.partners.add(os.getpid())
        threading.Timer(0.2, store.stop.set).start()
        with pytest.raises(Stopped):
            store.do(stage)
    store.stop.clear()
    assert not store.held_by_others([stage])
    store.do(stage)
    assert store.computed == [other.key, stage.key]
    assert not store.held_by_others([stage]), "nothing is left to do"


def test_facts_are_readable_json(tmp_path):
    a, store = make(), Store(tmp_path)
    store.do(a)
    facts = json.loads((store.path(a) / FACTS).read_text())
    assert set(facts) >= {
        "stage",
        "key",
        "settings",
        "seed",
        "parents",
        "content",
        "counts",
        "seconds",
        "peak_mb",
        "device",
        "commit",
    }


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic_write(path) as beside:
        beside.write_text("one")
        assert not path.exists()
        assert beside.name.endswith(".part")

    def fails():
        with atomic_write(path) as beside:
            beside.write_text("two")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fails()
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_an_error_of_an_atomic_write_names_the_file_that_was_asked_for(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(IsADirectoryError) as error, atomic_write(tmp_path / "a.png") as beside:
        beside.write_text("x")
    assert (error.value.filename, error.value.filename2) == (str(tmp_path / "a.png"), None)


def test_the_seed_of_a_stage_is_that_of_its_run(tmp_path):
    def work(out, parents, run):
        (out / "seed").write_text(str(run.seed))

    (folder,) = Store(tmp_path).do(Stage("a", {}, work, seed=5))
    assert (folder / "seed").read_text() == "5"


# -- network file systems, and where records are ------------------------------------------------------------------------


def test_what_another_host_has_finished_is_found_though_its_name_was_not_there_before(tmp_path, monkeypatch):
    """An NFS client remembers that a name was not there until the folder changes under its own hands."""
    calls: list[str] = []
    other, mine = Store(tmp_path), Store(tmp_path)
    other.do(make(calls=calls))
    looked_anew: list[Path] = []
    touch, finished = os.utime, Store.finished

    def utime(path, *words, **further):
        looked_anew.append(Path(path))
        touch(path, *words, **further)

    monkeypatch.setattr(os, "utime", utime)
    monkeypatch.setattr(Store, "finished", lambda self, stage: bool(looked_anew) and finished(self, stage))
    mine.do(make(calls=calls))
    assert calls == ["x"], "it was computed once"
    assert looked_anew[0] == tmp_path / "a"


def test_a_broken_stage_that_nothing_needs_is_put_aside_and_not_computed(tmp_path):
    calls: list[str] = []
    store = Store(tmp_path)
    store.do(make(calls=calls))
    (store.path(make()) / FACTS).write_text("{")
    fresh = Store(tmp_path)
    fresh.put_aside(make(calls=calls))
    assert calls == ["x"]
    assert not fresh.path(make()).exists()
    assert len(list((tmp_path / "damaged").iterdir())) == 1


def test_a_store_knows_the_folders_of_records_until_it_is_told_to_forget_one(tmp_path):
    store = Store(tmp_path / "store")
    for name in ("b", "a", "b"):
        (tmp_path / name).mkdir(exist_ok=True)
        store.remember_records(tmp_path / name)
    assert sorted(store.records) == [tmp_path / "a", tmp_path / "b"]
    (tmp_path / "a").rmdir()
    assert sorted(store.records) == [tmp_path / "a", tmp_path / "b"]
    store.forget_records(tmp_path / "a")
    assert store.records == [tmp_path / "b"]


def test_a_store_that_cannot_be_written_to_remembers_no_folder_and_ends_no_cell(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "records").write_text("no folder can be made here")
    store = Store(tmp_path / "store")
    store.remember_records(tmp_path)
    assert store.records == []
