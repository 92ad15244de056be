"""Runs checks so that none of them can end the command: not by an exception, nor by a crash of its process."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pkgutil
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

from .findings import TORCH, Finding, Options, failure

log = logging.getLogger(__name__)

READY = "ready"
CRASHED = "crash"
NOT_LOADED = f"install the library again that does not load; where that is torch, {TORCH}"


@dataclass(frozen=True)
class Check:
    """One part of the report.

    Attributes:
        name, title: for programs and for people.
        source: "module:function" of (options) -> findings, imported when it runs: libraries that do not load are
            findings too.
        remedy: what to do if it raises, once its libraries are loaded.
    """

    name: str
    title: str
    source: str
    remedy: str


@dataclass(frozen=True)
class Result:
    """What a check found, and how long it took."""

    check: Check
    findings: list[Finding]
    seconds: float

    @property
    def crashed(self) -> bool:
        return any(finding.name == CRASHED for finding in self.findings)


def examine(check: Check, options: Options) -> Iterator[Finding]:
    """The findings of a check; an exception is the last of them."""
    remedy = NOT_LOADED
    try:
        find = pkgutil.resolve_name(check.source)
        remedy = check.remedy
        yield from find(options)
    except Exception as error:
        yield failure(check.name, error, remedy)


def run_checks(checks: Sequence[Check], options: Options) -> Iterator[Result]:
    """Run checks in order, in a process of their own: one that crashes or is killed costs that check alone.

    Where no process can be started, they run in this one.
    """
    rest = deque(checks)
    while rest:
        with _worker(list(rest), options) as (process, inbox):
            if _receive(inbox) != READY:
                yield from (_timed(check, examine(check, options)) for check in rest)
                return
            while rest:
                result = _timed(rest.popleft(), _received(process, inbox))
                yield result
                if result.crashed:
                    break


def _timed(check: Check, findings: Iterator[Finding]) -> Result:
    begin = time.perf_counter()
    found = list(findings)
    return Result(check, found, time.perf_counter() - begin)


# --- the process ----------


@contextmanager
def _worker(checks: list[Check], options: Options) -> Iterator[tuple[multiprocessing.Process | None, Connection]]:
    """A process that examines checks, and the end of a pipe at which its findings arrive."""
    context = multiprocessing.get_context("spawn")
    inbox, outbox = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(outbox, checks, options), daemon=True)
    try:
        process.start()
    except Exception as error:  # of the system, or of whatever stands for it in an embedded Python
        log.info("no process of its own: %s", error)
        process = None
    outbox.close()
    try:
        yield process, inbox
    finally:
        inbox.close()
        if process:
            process.terminate()
            process.join()


def _work(outbox: Connection, checks: list[Check], options: Options) -> None:
    """Send READY, then the findings of each check and None."""
    # What libraries print is no part of the report.
    os.dup2(sys.__stderr__.fileno(), 1)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        outbox.send(READY)
        for check in checks:
            for finding in examine(check, options):
                outbox.send(finding)
            outbox.send(None)
    except (KeyboardInterrupt, BrokenPipeError):
        pass  # the parent tells it


def _receive(inbox: Connection):
    try:
        return inbox.recv()
    except (EOFError, OSError):
        return CRASHED


def _received(process: multiprocessing.Process, inbox: Connection) -> Iterator[Finding]:
    """The findings of one check."""
    while isinstance(found := _receive(inbox), Finding):
        yield found
    if found == CRASHED:
        process.join()
        yield _crash(process.exitcode)


def _crash(code: int) -> Finding:
    """Tell the end of a process by its exit code, which is negative where a signal ended it."""
    try:
        how = f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        how = f"ended with code {code}"
    remedy = "a driver or a native library crashed: install torch and the driver again, or choose another --device"
    if how.endswith("SIGKILL"):
        remedy = "the system ends processes where memory runs out: close other programs, or give the container more"
    return Finding(CRASHED, "fail", f"the process of this check {how}", remedy, {"exit_code": code})
