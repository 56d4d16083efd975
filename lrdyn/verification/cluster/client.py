"""The client's side of a cluster: Dask's scheduler and workers, and parts sent as tasks."""

import contextlib
import logging
import os
import pickle
import queue
import re
import threading
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any, NamedTuple

from distributed import Client, Future, KilledWorker
from distributed.client import FutureCancelledError
from distributed.comm.addressing import parse_address
from distributed.security import Security

from lrdyn.core.show import shortened
from lrdyn.system.printer import say
from lrdyn.system.progress import Progress
from lrdyn.verification.cluster import ADDRESS, shared_folder, worker
from lrdyn.verification.cluster.credentials import credentials
from lrdyn.verification.cluster.local_workers import DEATHS
from lrdyn.verification.cluster.local_workers import start_workers as start_workers
from lrdyn.verification.cluster.origins import Origin, origin
from lrdyn.verification.cluster.tasks import SMALL, PartTask, TaskFailure, compute_part
from lrdyn.verification.judging.rounding import Measured
from lrdyn.verification.running import arithmetic_probe
from lrdyn.verification.running.configuration import BadInput
from lrdyn.verification.running.work import Part, PartFailed, Recipe
from lrdyn.verification.stating.statement import Experiment
from lrdyn.verification.storing.parts import Arrays, Store

TIMEOUT = 10.0
"""Seconds in which a scheduler must answer."""

EVERY = 0.5
"""Seconds between two checks for new workers."""


class Lost(ConnectionError):
    """The connection to the scheduler is lost."""

    def __init__(self, address: str):
        super().__init__(None, "the scheduler is lost", address)


class _Replaced(Exception):
    """All workers that were asked are lost, and others have come."""


@contextlib.contextmanager
def open_cluster(address: str, security: str | None = None) -> Iterator["Cluster"]:
    """Connect to a scheduler, or start one with N workers here for ``local:N``.

    Args:
        address: of the scheduler, or ``local:N``.
        security: folder with certificates, for an address of ``tls://``; what the configuration of
            Dask says by default.

    Raises:
        BadInput: nothing answers, or no worker has this release of the library.
    """
    local = re.fullmatch(r"local:([1-9][0-9]*)", address)
    there = start_workers(int(local[1])) if local else contextlib.nullcontext((address, security))
    with there as (where, folder), connection(where, folder) as cluster:
        yield cluster


@contextlib.contextmanager
def connection(address: str, security: str | None = None) -> Iterator["Cluster"]:
    """Connect to a scheduler, with the certificates of a folder."""
    client = connect(address, security)
    try:
        cluster = Cluster(client)
        yield cluster
        cluster.close()
    finally:
        with contextlib.suppress(Exception):  # the scheduler may be gone
            client.close(timeout=1)


def connect(address: str, security: str | None = None) -> Client:
    """Connect to a scheduler, with the certificates of a folder.

    Raises:
        BadInput: nothing answers there.
    """
    got = f"--cluster: got {address!r}"
    _silence_dask()
    try:
        secure = credentials(security) if security else Security()
        context = secure.get_connection_args("client").get("ssl_context")
    except OSError as error:
        raise BadInput(
            f"{got}, wanted certificates that can be used ({_error_line(error)})"
        ) from None
    if address.startswith("tls://") and not context:
        # A client that fails here would wait for its end for 20 s, and print a traceback.
        wanted = "certificates for it: --cluster-security DIR, or the configuration of Dask"
        raise BadInput(f"{got}, wanted {wanted}")
    try:
        return Client(address, timeout=TIMEOUT, set_as_default=False, security=secure)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise BadInput(f"{got} ({_error_line(error)}), wanted {ADDRESS}") from None


def _silence_dask() -> None:
    """Silence Dask's logs: a line of ours says what a user should know of a lost worker."""
    # Dask gives its loggers levels of their own, so that the level of the whole package decides
    # nothing for them.
    for name in ("distributed", *logging.root.manager.loggerDict):
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _error_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


_WARNED: set[str] = set()


def warn_of_exposure(name: str, address: str) -> None:
    """Warn of a scheduler without TLS, once in a process: others could run code through it.

    Args:
        name: of the command, before the line.
        address: of the scheduler, to which nothing was sent yet.
    """
    local = address.startswith("local:")
    if local or address in _WARNED or parse_address(address)[0] in ("tls", "wss"):
        return
    _WARNED.add(address)
    who = "whoever reaches it, or the network between, can run code on its workers"
    here = "and, by what they send back, as you on this machine"
    say(f"{name}: cluster: {shortened(address)} is without TLS: {who} {here}")


class Cluster:
    """The workers of a scheduler as :class:`lrdyn.verification.running.work.Elsewhere`.

    Args:
        client: a client of Dask.

    Raises:
        BadInput: there are workers, and none has this release of the library.
    """

    def __init__(self, client: Client):
        self.client, self.release = client, worker.release()
        self.address = str(client.scheduler.address) if client.scheduler else ""
        self.greeted: dict[str, dict[str, Any]] = {}
        self.refused: dict[str, str] = {}
        self.notes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.ended = threading.Event()
        self.at_work: set[str] = set()
        self.generation = 0
        """Increases whenever workers join after there were none."""
        self._look_for_workers()
        self._refuse_unfit()
        threading.Thread(target=self._watch, name="workers", daemon=True).start()

    def described(self) -> str:
        """The scheduler, its workers and its dashboard in a line."""
        count = len(self.greeted)
        workers = "1 worker" if count == 1 else f"{count or 'no'} workers"
        waits = "" if count else ", waiting for one"
        try:
            board = f", dashboard {self.client.dashboard_link}"
        except KeyError:  # a scheduler without a dashboard
            board = ""
        return f"cluster: {workers} at {self.address}{board}{waits}"

    def close(self) -> None:
        """Stop looking for new workers."""
        self.ended.set()

    def workers(self) -> list[dict[str, Any]]:
        """Hardware and versions of the workers, grouped where they are equal."""
        kinds = Counter(tuple(sorted(facts.items())) for facts in self.greeted.values())
        versions = {name: version(name) for name in ("dask", "distributed")}
        return [{**dict(kind), **versions, "workers": count} for kind, count in kinds.items()]

    def measure_arithmetic(
        self, precision: str, word: str, on_trial: Sequence[tuple[int, int]] = ()
    ) -> list[Measured]:
        """Measure the arithmetic of each kind of worker's device; waits for a first worker.

        Args:
            precision: ``float64`` or ``float32``.
            word: of ``--precision``.
            on_trial: rows and columns of what algorithms on trial decompose.

        Raises:
            BadInput: one has no such products, or no worker has this release of the library.
            PartFailed: workers ended over it.
            Lost: the scheduler is.
        """
        while True:
            # Before anything is asked, for the scheduler would never assign it.
            generation = self._first_worker()
            kinds: dict[tuple, list[str]] = {}
            for address in self.at_work:
                facts = self.greeted[address]
                kinds.setdefault((facts["device"], facts["jaxlib"]), []).append(address)
            asked = [
                self.client.submit(
                    arithmetic_probe.measure_arithmetic,
                    precision,
                    word,
                    on_trial=on_trial,
                    # Keys are shared by all users of a scheduler, and a result under a known key
                    # is not computed again.
                    key=f"lrdyn_arithmetic-{uuid.uuid4().hex}",
                    resources={self.release.label: 1},
                    workers=of_kind,
                    # A worker of this kind may end before it has measured; any other answer is
                    # better than none.
                    allow_other_workers=True,
                )
                for of_kind in kinds.values()
            ]
            with contextlib.suppress(_Replaced):
                return [self._wait_for(future, generation) for future in asked]

    def _first_worker(self) -> int:
        """Wait until there is a worker; the generation that is at work."""
        while True:
            # The generation before the workers: if others replace these, what was asked of them
            # is asked again.
            generation = self.generation
            if self.at_work:
                return generation
            self.check()
            self._refuse_unfit()
            self.ended.wait(EVERY)

    def _refuse_unfit(self) -> None:
        if self.refused and not self.greeted:
            address, why = next(iter(self.refused.items()))
            raise BadInput(f"--cluster: worker {address}: {why}")

    def _wait_for(self, future: Future, generation: int) -> Any:
        """The return value of a task, or what it raised."""
        pool = ThreadPoolExecutor(1)
        try:
            # In a thread, since a future of Dask waits for ever when its scheduler is gone.
            coming = pool.submit(future.result)
            while True:
                with contextlib.suppress(TimeoutError):
                    return coming.result(timeout=0.5)
                self.check()
                if generation != self.generation:
                    future.cancel()  # which ends the thread, too
                    raise _Replaced
        except (KilledWorker, FutureCancelledError, OSError) as error:
            self.check()
            raise PartFailed(
                f"workers ended while they measured their arithmetic: {error}"
            ) from error
        finally:
            pool.shutdown(wait=False)

    def executor(self, recipe: Recipe, progress: Progress) -> "ClusterParts":
        """The executor of the parts of a sweep."""
        argument = "experiment" if isinstance(recipe.subject, Experiment) else "function"
        source = origin(recipe.subject, argument)
        # The subject goes by its name or as the text of its file: pickled, it would ask for a
        # module that a worker may not have.
        pickled = pickle.dumps(recipe._replace(subject=None))
        return ClusterParts(self, source, pickled, progress)

    def window(self) -> int:
        """Number of parts of a sweep that are submitted at a time."""
        # Two for each worker: one that it computes, and one that it need not wait for.
        return 2 * max(2, len(self.at_work))

    def alive(self) -> list[str]:
        """Addresses of the current workers."""
        # Not from scheduler_info: the client replaces it by itself with facts without the workers.
        workers: Any = self.client.nthreads()
        return list(workers)

    def check(self) -> None:
        """Raise :class:`Lost` if the scheduler does not answer any more."""
        if self.client.status != "running":
            raise Lost(self.address)

    def _watch(self) -> None:
        while not self.ended.wait(EVERY):
            with contextlib.suppress(
                Exception
            ):  # a lost scheduler is reported where parts are waited for
                self._look_for_workers()

    def _look_for_workers(self) -> None:
        """Greet new workers, and note when all have been replaced.

        A scheduler never assigns again the tasks that it held while it had no worker: they must be
        submitted anew, which a new generation tells.
        """
        alive = self.alive()
        new = [a for a in alive if a not in self.greeted and a not in self.refused]
        if new:
            self._greet(new)
            alive = self.alive()  # workers may have been lost during the greeting
        fit = set(alive) & self.greeted.keys()
        # None of those that were at work is left: all tasks that the scheduler held are lost with
        # them.
        self.generation += bool(fit and not fit & self.at_work)
        self.at_work = fit

    def _greet(self, new: list[str]) -> None:
        answers: Any = self.client.run(
            worker.begin, tuple(self.release), workers=new, on_error="return"
        )
        for address, answer in answers.items():
            if isinstance(answer, OSError):  # the worker has ended meanwhile
                continue
            if isinstance(answer, Exception):
                line = (str(answer).splitlines() or [""])[0]
                answer = {"refused": f"got {type(answer).__name__} ({line}), wanted {self.release}"}
            if "refused" in answer:
                self.refused[address] = answer["refused"]
                self.notes.put(f"worker {address}: {answer['refused']}")
            else:
                self.greeted[address] = answer


class _Asked(NamedTuple):
    """A part that was submitted to the scheduler."""

    part: Part
    deaths: int = 0
    shared: bool = True
    """Whether it may be written into the store."""


class ClusterParts:
    """Computes the parts of one sweep as tasks of a cluster."""

    def __init__(self, cluster: Cluster, source: Origin, recipe: bytes, progress: Progress):
        self.cluster, self.source, self.progress = cluster, source, progress
        self.topic = f"lrdyn-{uuid.uuid4().hex}"
        self.recipe: Any = recipe
        self.small = len(recipe) <= SMALL
        self.pool = ThreadPoolExecutor(1)

    def __call__(self, parts: Sequence[Part], store: Store | None) -> Iterator[tuple[Part, Arrays]]:
        """Iterate over the parts and their arrays, in the order in which they end.

        Raises:
            PartFailed: some raised; the others ended before.
            BadInput: what a function returned was refused.
            Lost: the scheduler is.
        """
        if not parts:
            return
        with contextlib.ExitStack() as stack:
            token = stack.enter_context(shared_folder.make_token(store)) if store else ""
            stack.enter_context(self._subscribe())
            stack.callback(self.pool.shutdown, wait=False)
            yield from self._compute(parts, store, token)

    def _compute(
        self, parts: Sequence[Part], store: Store | None, token: str
    ) -> Iterator[tuple[Part, Arrays]]:
        left = deque(map(_Asked, parts))
        asked: dict[Any, tuple[Future, _Asked]] = {}
        ended: queue.SimpleQueue[Future] = queue.SimpleQueue()
        failures: list[tuple[_Asked, TaskFailure]] = []
        generation, recipe = self.cluster.generation, self._hand_out_recipe()
        in_vain = 0  # how often all workers were lost since a part ended
        try:
            while left or asked:
                if generation != self.cluster.generation:
                    generation, recipe = self.cluster.generation, self._hand_out_recipe()
                    again = [task for _, task in asked.values()]
                    self._cancel([future for future, _ in asked.values()])
                    asked.clear()
                    in_vain += 1
                    if in_vain > DEATHS:
                        lost = TaskFailure(
                            f"all workers ended {in_vain} times while they computed", ""
                        )
                        failures += [(task, lost) for task in again]
                    else:
                        left += again
                # After such a loss parts run one at a time, so that only the culprit is blamed.
                while left and len(asked) < (1 if in_vain else self.cluster.window()):
                    task = left.popleft()
                    future = self._submit(recipe, task, store, token)
                    asked[future.key] = future, task
                    future.add_done_callback(ended.put)
                future = self._await_next(ended)
                if future is None or future.key not in asked:  # a dropped part ends, too
                    continue
                _, task = asked.pop(future.key)
                result = self._result(future, task, generation)
                if result is task:
                    self._cancel([future])
                future.release()
                if not isinstance(result, _Asked):
                    in_vain = 0
                # Not raised at once: the others are computed and kept first, so that a correction
                # costs one part.
                if isinstance(result, TaskFailure):
                    failures.append((task, result))
                elif isinstance(result, _Asked):
                    left.append(result)
                elif result is not None:
                    # Before it is kept: a wrong part must not stand in the store.
                    if why := task.part.mismatch(result):
                        failures.append((task, TaskFailure(f"a worker: {why}", "")))
                        continue
                    if store:
                        store.save(task.part.key, result)
                    yield task.part, result
                # The worker has written it into the store that both see.
                elif (
                    store and (arrays := shared_folder.await_part(store, task.part.key)) is not None
                ):
                    yield task.part, arrays
                elif not (store and task.shared):
                    lost = "a worker: got nothing, wanted arrays by their names"
                    failures.append((task, TaskFailure(lost, "")))
                else:
                    # The worker saw the folder and this machine does not see the part: it is to
                    # come back by itself.
                    left.append(task._replace(shared=False))
        finally:
            self._cancel([future for future, _ in asked.values()])
        if failures:
            refused = all(failed.refused for _, failed in failures)
            raise (BadInput if refused else PartFailed)(_failure_message(failures))

    def _hand_out_recipe(self) -> Any:
        """The recipe, or if it is large a task that hands it to each worker once."""
        if self.small:
            return self.recipe
        label = {self.cluster.release.label: 1}
        key = f"lrdyn-recipe-{uuid.uuid4().hex}"
        return self.cluster.client.submit(_identity, self.recipe, key=key, resources=label)

    def _submit(self, recipe: Any, asked: _Asked, store: Store | None, token: str) -> Future:
        folder = os.fspath(store.folder.resolve()) if store else ""
        token = token if asked.shared else ""
        task = PartTask(self.source, asked.part.key, asked.part.ask(), folder, token, self.topic)
        self.cluster.check()
        name = re.sub(r"\W+", "_", self.source.name.rpartition(":")[2])
        return self.cluster.client.submit(
            compute_part,
            recipe,
            pickle.dumps(task),
            key=f"lrdyn_{name}-{uuid.uuid4().hex}",  # never that of another user
            resources={self.cluster.release.label: 1},
        )

    def _await_next(self, ended: "queue.SimpleQueue[Future]") -> Future | None:
        """The next part that has ended; None after a short wait."""
        self._pass_on_notes()
        with contextlib.suppress(queue.Empty):
            return ended.get(timeout=0.5)
        self.cluster.check()
        return None

    def _result(self, future: Future, asked: _Asked, generation: int) -> Any:
        """Arrays of a part, None if they are stored, its failure, or the part to resubmit."""
        coming = self.pool.submit(future.result)
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    return coming.result(timeout=0.5)
                self.cluster.check()
                if generation != self.cluster.generation:  # the task was lost with its worker
                    return asked
        except (KilledWorker, FutureCancelledError, OSError) as error:
            self.cluster.check()
            # A scheduler itself gives a part up after ``allowed_failures`` lost workers.
            more = error.allowed_failures + 1 if isinstance(error, KilledWorker) else 1
            if asked.deaths + more <= DEATHS:
                return asked._replace(deaths=asked.deaths + more)
            return TaskFailure(
                f"{asked.deaths + more} workers ended while they computed it", str(error)
            )

    def _cancel(self, futures: list[Future]) -> None:
        with contextlib.suppress(Exception):  # a lost scheduler has no tasks left to cancel
            if futures and self.cluster.client.status == "running":
                self.cluster.client.cancel(futures, asynchronous=False, force=True)

    def _pass_on_notes(self) -> None:
        with contextlib.suppress(queue.Empty):
            while line := self.cluster.notes.get_nowait():
                self.progress.note(line)

    @contextlib.contextmanager
    def _subscribe(self) -> Iterator[None]:
        """Pass on the progress that workers report within a part."""
        client = self.cluster.client
        client.subscribe_topic(self.topic, self._receive)
        try:
            yield
        finally:
            with contextlib.suppress(Exception):
                client.unsubscribe_topic(self.topic)

    def _receive(self, event: tuple[float, Mapping[str, Any]]) -> None:
        _, message = event
        if "during" in message:
            self.progress.during(*message["during"])
        elif "note" in message:
            self.progress.note(message["note"])


def _identity(recipe: bytes) -> bytes:
    return recipe


def _failure_message(failures: Sequence[tuple[_Asked, TaskFailure]]) -> str:
    """Message about the first failure in the order of the sweep, whichever came first in time."""
    asked, failed = min(failures, key=lambda each: int(each[0].part.indices[0]))
    if os.environ.get("LRDYN_DEBUG"):
        logging.getLogger("lrdyn").critical("%s", failed.trace)
    more = f" (and {len(failures) - 1} parts more)" if len(failures) > 1 else ""
    return f"{asked.part.ask()}: {failed.line}{more}"
