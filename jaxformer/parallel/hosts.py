"""Distributed runs: processes join, exchange small values, and are told when one of them dies.

Everything that is not an array on the mesh (a tokenizer, the choice of a checkpoint) comes from the first process; what
every process computes by itself (the data) is compared once.
"""

import hashlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxformer.parallel.accelerators import has_tpu
from jaxformer.schema import UserError

NOTICE_S = 30.0  # between two notices of a process that waits for the others
GOODBYE_S = 5.0  # what another process gets to answer
ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_AGAIN = "start all processes again with the same command to resume from the last checkpoint"


def find_cluster(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """The arguments of ``jax.distributed.initialize``, empty where JAX finds them; None for a single process.

    Raises:
        UserError: if the address is incomplete or malformed.
    """
    given = {name: environ[name] for name in (ADDRESS, COUNT, INDEX) if environ.get(name)}
    if given:
        missing = [name for name in (ADDRESS, COUNT, INDEX) if name not in given]
        if missing:
            raise UserError(
                f"{', '.join(given)} is set and {', '.join(missing)} is not, expected all three: the address of process"
                " 0, the number of processes, and the index of this one"
            )
        address, count, index = (given[name] for name in (ADDRESS, COUNT, INDEX))
        if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
            raise UserError(f"{COUNT} is {count!r} and {INDEX} {index!r}, expected a number and a smaller one, from 0")
        host, _, port = address.rpartition(":")
        if not (host and port.isdecimal()):
            raise UserError(f"{ADDRESS} is {address!r}, expected host:port, for instance 10.0.0.1:1234")
        all_three = {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
        return None if count == "1" else all_three
    # srun and mpirun say how many they started; a TPU worker on Kubernetes knows the names of all.
    started = (environ.get("SLURM_STEP_NUM_TASKS", "1"), environ.get("OMPI_COMM_WORLD_SIZE", "1"))
    many = any(count.isdecimal() and int(count) > 1 for count in started)
    return {} if many or "," in environ.get("TPU_WORKER_HOSTNAMES", "") or has_tpu() else None


def start(limit_s: float, notice_s: float = NOTICE_S) -> None:
    """Joins the other processes of the run, if there are any; must come before JAX is asked for devices.

    A process that waits says so every ``notice_s`` seconds, and ends with an error after ``limit_s``.

    Raises:
        UserError: if the address of the others is wrong, or they cannot be joined.
    """
    arguments = find_cluster(os.environ)
    if arguments is None:
        return
    # It would handle SIGTERM, which the training loop does itself.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with _patience(arguments, limit_s, notice_s):
            # JAX ends the process when its own limit is reached; ours comes first, with one clear line.
            jax.distributed.initialize(**arguments, initialization_timeout=int(limit_s) + 60)
    except ValueError:
        # A machine with a TPU that is not part of a cluster.
        if arguments:
            raise
        return
    except RuntimeError as error:
        raise UserError(f"the other processes cannot be joined: {' '.join(str(error).split())[:300]}") from None
    if jax.process_count() > 1:
        _WATCH.start(arguments.get("coordinator_address", "").rpartition(":")[0])
        # A barrier, so that no process ends before all are connected.
        from_first(lambda: b"")


@contextmanager
def _patience(arguments: Mapping[str, Any], limit_s: float, notice_s: float) -> Iterator[None]:
    """Prints a notice at intervals and ends the process at the limit: the call in the block cannot be interrupted."""
    over = threading.Event()
    where = f" at {arguments['coordinator_address']}" if arguments else ""
    who = f"process {arguments['process_id']} of {arguments['num_processes']}" if arguments else "this process"

    def watch() -> None:
        begin = time.monotonic()
        while not over.wait(min(notice_s, max(0.0, begin + limit_s - time.monotonic()))):
            waited = time.monotonic() - begin
            if waited >= limit_s:
                _end(
                    2,
                    f"{who} waited {limit_s:.0f} s for the others{where}, expected all to start in this time: start "
                    "the same command on every host, check the address, or raise parallel.start_timeout",
                )
            print(f"{who} waits for the others{where}: {waited:.0f} s of {limit_s:.0f} s", file=sys.stderr, flush=True)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def is_first() -> bool:
    """Returns whether this is the process that prints and writes."""
    return jax.process_index() == 0


def from_first(make: Callable[[], bytes]) -> bytes:
    """The result of ``make`` in the first process; the others do not call it. Every process must call this."""
    if jax.process_count() == 1:
        return make()
    data = make() if is_first() else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    buffer = np.frombuffer(data, np.uint8) if is_first() else np.zeros(size, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(buffer)).astype(np.uint8).tobytes()


def check_same(facts: Mapping[str, str]) -> None:
    """Refuses processes whose values differ.

    Args:
        facts: values that must be the same in all of them, by name.

    Raises:
        UserError: naming what differs and where.
    """
    if jax.process_count() == 1:
        return
    digests = np.stack([np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8) for text in facts.values()])
    everywhere = np.asarray(multihost_utils.process_allgather(digests))
    differs = (everywhere != everywhere[:1]).any(axis=-1)
    if differs.any():
        processes, names = np.nonzero(differs)
        name = list(facts)[int(names[0])]
        others = ", ".join(str(p) for p in np.unique(processes[names == names[0]]))
        raise UserError(
            f"{name} of process {others} is not that of process 0, expected the same in all: give every host the same "
            "code, configuration and files"
        )


def wait_for_notice() -> None:
    """Waits after a failed exchange: the death of another process, which explains it, may be reported."""
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        time.sleep(GOODBYE_S)


def _end(code: int, error: str) -> NoReturn:
    # Not sys.exit, which would wait for other threads and for JAX's shutdown of processes that are gone.
    print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(code)


class _Watch:
    """Connections between the first process and every other one; a broken connection means that its process died.

    JAX notices this after up to 100 s, by missing heartbeats, and then ends the process with a stack trace.
    """

    def __init__(self) -> None:
        self._connections: list[Connection] = []
        self._listeners: list[threading.Thread] = []
        self._done = False
        self._lock = threading.Lock()

    def start(self, host: str) -> None:
        """Connects this process; ``host`` is the address of the first one, "" if not known."""
        secret = from_first(lambda: os.urandom(32))
        if is_first():
            listener = Listener(("", 0), backlog=jax.process_count(), authkey=secret)
            host = host or socket.gethostbyname(socket.gethostname())
            from_first(lambda: f"{host}:{listener.address[1]}".encode())
            accepting = threading.Thread(target=self._accept, args=(listener, jax.process_count()), daemon=True)
            accepting.start()
            # A process that cannot connect has printed a warning; the run continues without its connection.
            accepting.join(GOODBYE_S)
            return
        host, _, port = from_first(lambda: b"").decode().rpartition(":")
        try:
            connection = Client((host, int(port)), authkey=secret)
        except OSError as error:
            print(
                f"warning: {_me()} cannot reach {host}:{port} ({error}); that another process ended will be noticed "
                "late",
                file=sys.stderr,
            )
            return
        connection.send_bytes(_me().encode())
        self._listen(connection, f"process 0 of {jax.process_count()}")

    def _accept(self, listener: Listener, count: int) -> None:
        for _ in range(count - 1):
            connection = listener.accept()
            self._listen(connection, connection.recv_bytes(1000).decode())
        listener.close()

    def _listen(self, connection: Connection, name: str) -> None:
        self._connections.append(connection)
        self._listeners.append(threading.Thread(target=self._hear, args=(connection, name), daemon=True))
        self._listeners[-1].start()

    def _hear(self, connection: Connection, name: str) -> None:
        try:
            message = connection.recv_bytes(10_000).decode()
        except (EOFError, OSError):
            message = f"{name} ended without a word (killed, or out of memory?); {_AGAIN}"
        with self._lock:
            if message and not self._done:
                self._tell(message)
                _end(1, message)

    def _tell(self, message: str) -> None:
        for connection in self._connections:
            try:
                connection.send_bytes(message.encode()[:10_000])
            except OSError:
                continue  # the one that ended

    def finish(self) -> None:
        """Tells the others, by an empty message, that this process ends normally."""
        with self._lock:
            self._done = True
            self._tell("")

    def give_up(self, code: int, error: str) -> None:
        """Ends all processes of the run because of an error in this one; returns only where it is the only one."""
        if not jax.distributed.is_initialized() or jax.process_count() == 1:
            return
        with self._lock:
            self._done = True
            self._tell(f"{_me()} stopped: {error}")
        if is_first():
            # JAX ends the others with a stack trace once the first is gone, so it waits for them.
            for listener in self._listeners:
                listener.join(GOODBYE_S)
        _end(code, error)


def _me() -> str:
    return f"process {jax.process_index()} of {jax.process_count()}"


_WATCH = _Watch()
finish, give_up = _WATCH.finish, _WATCH.give_up
