"""The locks of a store: which process does a stage, and what the others do meanwhile."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from filelock import SoftFileLease, Timeout

from udpbench.interfaces import Log

# Seconds without a sign of life after which a holder's work is another's. Holders give one every third of it; over NFS
# it may take a minute to be seen.
LEASE = 120.0


class Leases:
    """The locks in the folder ``root``, one file for each stage, which its holder touches regularly: they work across
    hosts and file systems.

    ``partners``: ids of processes that share the work: waiting for them is nothing to tell.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.partners: set[int] = set()
        self._known: dict[str, SoftFileLease] = {}  # by key; kept, for they remember when a holder's last moved

    def of(self, kind: str, key: str) -> SoftFileLease:
        """The lock of a stage of this kind and key; entering it raises Timeout at once if another process holds it."""
        if key not in self._known:
            self.root.mkdir(parents=True, exist_ok=True)
            self._known[key] = SoftFileLease(self.file(kind, key), lease_duration=LEASE, timeout=0)
        return self._known[key]

    def file(self, kind: str, key: str) -> Path:
        """Where it is while a process holds it."""
        return self.root / f"{kind}-{key}.lease"

    def is_free(self, kind: str, key: str) -> bool:
        """Whether nobody holds it, or its holder is gone."""
        try:
            with self.of(kind, key):
                return True
        except Timeout:
            return False
        except OSError:  # which whoever takes it meets, too
            return True

    def is_others(self, kind: str, key: str) -> bool:
        """Whether a process that is no partner holds it."""
        holder = self.of(kind, key).owner
        return holder is not None and holder.pid not in self.partners

    def wait(self, what: str, kind: str, key: str, said: set[str], log: Log) -> None:
        """Wait half a second for its holder, and say so unless it is a partner or ``key`` is in ``said``, where it is
        from now on; ``what``: the stage in words."""
        lease = self.of(kind, key)
        holder = lease.owner  # nobody: it is done with
        if holder and key not in said and holder.pid not in self.partners:
            host = holder.hostname.partition("?")[0]  # without the mark of a container
            log.say(
                f"waiting for {what}: process {holder.pid} on {host} does it; if that one is gone, it is taken over "
                f"{LEASE:g} s after its last sign of life, or once {lease.lock_file} is deleted"
            )
            said.add(key)
        with suppress(FileNotFoundError):  # an empty lock says nothing: the power went when it was written
            found = Path(lease.lock_file).stat()
            if not found.st_size and time.time() - found.st_mtime > LEASE:
                lease.break_lock()
        time.sleep(0.5)
