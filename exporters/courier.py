"""The courier: take entries of the outbox to their destination, one attempt at a time, and record each result.

The rules it keeps: with the final bytes in hand they are checked against the list again, consent is asked again, and a copy
is kept, before they are sent. A failing destination is left alone for growing times, and its entries wait. No fault of a
network, a collector or another process is raised.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from exporters.bounds import OTHER_TIME
from exporters.config import Answer, Record, Transport
from exporters.entry import DestinationKey, Entry, Head, UnreadableError
from exporters.gate import Gate
from exporters.outbox import AT_ONCE, Outbox

NOT_AT_ONCE = "not delivered at once: "  # begins a note: the entry waits, or has been delivered since
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 300.0
NO_CONSENT = "there is no consent to send"
_draw = random.SystemRandom()  # not the program's random numbers


class _WaitsError(Exception):
    """An entry is not sent now, and waits; the text says why."""

    def __init__(self, why: str, *, is_trouble: bool = True) -> None:
        super().__init__(why)
        self.is_trouble = is_trouble


@dataclass
class Round:
    """The result of one round of deliveries, in entries.

    Attributes:
        delivered: accepted.
        aside: refused for good.
        left: still waiting.
        reason: why the round ended early, or "".
        notes: the faults, for the run's own notes.
    """

    delivered: int = 0
    aside: int = 0
    left: int = 0
    reason: str = ""
    notes: list[str] = field(default_factory=list)


class Courier:
    """Delivers the entries of one destination.

    Args:
        outbox: the outbox.
        key: the destination, and the choice under which entries were made; entries with another one are left alone.
        gate: checks the bytes again.
        make: makes the transport; called before the first attempt.
        consent: asked before each attempt.
        record: keeps a copy of a body before it is sent.
        lock: returns a lock between processes by name, with ``acquire(timeout=)`` and ``release()``.
        takes: filters the entries, instead of the comparison with ``key``.
        yield_gil: called between two pieces of work, so that the loop's thread gets its turn.
    """

    def __init__(
        self,
        outbox: Outbox,
        key: DestinationKey,
        gate: Gate,
        make: Callable[[], Transport],
        consent: Callable[[], bool],
        record: Record,
        lock: Callable[[str], Any],
        takes: Callable[[Head], bool] | None = None,
        yield_gil: Callable[[], None] = lambda: None,
    ) -> None:
        self._outbox = outbox
        self._key = key
        self._gate = gate
        self._make = make
        self._consent = consent
        self._record = record
        self._lock = lock
        self._yield_gil = yield_gil
        self._takes = takes or (lambda head: head.key == key)
        self._transport: Transport | None = None
        self._failures = 0
        self._longest_s = 0.0  # of the attempts so far
        self._not_before = 0.0  # by the monotonic clock

    @property
    def backoff_s(self) -> float:
        """Seconds until the next attempt makes sense."""
        return max(self._not_before - time.monotonic(), self._outbox.troubles.of(self._key.digest)[1], 0.0)

    def deliver(self, until: Callable[[], float], patience_s: float = 0.0) -> Round:
        """Deliver entries, oldest first, until none is left, the destination fails, or the time is over.

        A destination that asked to be left alone is left alone. After other failures the caller decides, by `backoff_s`.

        Args:
            until: returns the end of the time on the monotonic clock; no attempt begins after it.
            patience_s: how long to wait for another process that delivers to the same destination.
        """
        done = Round()
        if not self._consent():
            return done
        self._yield_gil()
        why, wait_s = self._outbox.troubles.of(self._key.digest)
        if wait_s > 0:
            done.reason = f"{why}; it asks to be left alone for another {wait_s:.0f} s"
        else:
            with self._alone(patience_s) as locked:
                if locked is False:
                    done.reason = "another process is delivering"
                else:
                    self._yield_gil()
                    self._outbox.recover(self._key.digest, locked=locked is True)
                    self._outbox.expire(self._yield_gil)
                    self._rounds(until, done)
        done.left = sum(1 for _ in self._mine()) if done.reason else 0
        return done

    def close(self) -> None:
        """Close the transport."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    @contextlib.contextmanager
    def _alone(self, patience_s: float) -> Iterator[bool | None]:
        """Hold the destination's lock. Yield True; False if another process has it; None if there are no locks."""
        held = None
        try:
            held = self._lock(self._key.digest)
            held.acquire(timeout=patience_s)
        except TimeoutError:  # of filelock; its Timeout is one
            yield False
            return
        except (OSError, NotImplementedError, RuntimeError, ImportError):
            yield None
            return
        try:
            yield True
        finally:
            with contextlib.suppress(OSError):
                held.release()

    def _mine(self) -> Iterator[Entry]:
        for number, entry in enumerate(self._outbox.waiting()):
            if number % AT_ONCE == 0:
                self._yield_gil()
            with contextlib.suppress(OSError):
                try:
                    head = self._outbox.head(entry)
                except UnreadableError:
                    self._outbox.drop(entry, "unreadable")
                    continue
                if self._takes(head):
                    yield entry

    def _rounds(self, until: Callable[[], float], done: Round) -> None:
        """Deliver in rounds, because another run may have added entries meanwhile and relies on this one."""
        while entries := list(self._mine()):
            if self._key.target == "ga":  # in no fixed order, which would tell what is of the same run
                _draw.shuffle(entries)
            for entry in entries:
                # What Google may have got is not sent again. So no attempt is begun that could be cut off by the program's end.
                ends = time.monotonic() + (self._longest_s if self._key.target == "ga" else 0.0)
                if ends >= until():
                    done.reason = "the time for delivery was over"
                elif not self._consent():
                    done.reason = NO_CONSENT
                else:
                    self._deliver_entry(entry, done)
                if done.reason:
                    return

    def _deliver_entry(self, entry: Entry, done: Round) -> None:
        if self._transport is None:
            self._transport = self._make()
        claimed = self._outbox.claim(entry)
        if claimed is None:
            return
        # From here to `_settle` the entry is in sending/. The order is fixed: check the bytes, ask for consent, write the copy,
        # send. A process that is killed in between leaves either no trace, or a copy without an answer.
        try:
            body = self._checked(claimed, done)
            if body is None:
                return
            answered = self._noted(self._transport.where, body)
        except _WaitsError as why:
            self._outbox.put_back(claimed)
            done.reason = str(why)
            done.notes += [str(why)] if why.is_trouble else []
            return
        except BaseException:  # nothing has left, so nothing may look as if it had
            self._outbox.put_back(claimed)
            raise
        self._yield_gil()
        began = time.monotonic()
        answer = self._transport.send(body)
        self._longest_s = max(self._longest_s, time.monotonic() - began)
        self._yield_gil()
        answered(answer.text)
        self._settle(claimed, answer, done)

    def _checked(self, entry: Entry, done: Round) -> bytes | None:
        """Return the body if it may be sent; None if the entry was dropped, set aside or removed."""
        self._yield_gil()
        try:
            head, body = self._outbox.whole(entry)
        except FileNotFoundError:  # switched off in another process: all has been removed
            return None
        except UnreadableError as error:
            self._outbox.drop(entry, "unreadable")
            done.notes.append(f"an entry of the outbox could not be read: {error}")
            return None
        except OSError as error:
            raise _WaitsError(f"the outbox could not be read: {error.strerror}") from error
        self._yield_gil()
        if self._gate.passes(body, self._yield_gil, head.declared):
            return body
        if self._gate.fault == OTHER_TIME:  # perhaps of a clock that was set, here or where it was made: nothing is lost
            self._outbox.set_aside(entry, OTHER_TIME)
            done.aside += 1
        else:
            self._outbox.drop(entry, "fault")
        done.notes.append(self._gate.reason)
        return None

    def _noted(self, where: str, body: bytes) -> Callable[[str], None]:
        """Ask for consent with the bytes in hand, and keep a copy."""
        self._yield_gil()
        if not self._consent():
            raise _WaitsError(NO_CONSENT, is_trouble=False)
        try:
            return self._record(where, body)
        except OSError as error:
            raise _WaitsError(f"nothing was sent, because no copy of it can be kept: {error.strerror}") from error

    def _settle(self, entry: Entry, answer: Answer, done: Round) -> None:
        if answer.verdict == "later":
            self._outbox.put_back(entry)
            self._back_off(answer)
            done.reason = answer.text
            done.notes.append(f"{NOT_AT_ONCE}{answer.text}")
            return
        self._failures, self._not_before = 0, 0.0
        self._outbox.troubles.end(self._key.digest)
        once = self._key.target == "ga"
        if answer.verdict == "refused":
            if once:
                self._outbox.drop(entry, "final")
            else:
                self._outbox.set_aside(entry, answer.text)
                done.aside += 1
            done.notes.append(f"refused by the destination{'' if once else ' and set aside'}: {answer.text}")
            return
        if answer.partly is not None:
            self._outbox.count(entry.name, "partly")
            done.notes.append(f"taken in part: {answer.text}")
        self._outbox.delivered(entry, once=once)
        done.delivered += 1

    def _back_off(self, answer: Answer) -> None:
        """Wait longer after each failure, never in step with other processes, or as long as the destination asks."""
        # Exponential back-off with jitter. Runs of a cluster often start and fail together; without the random factor they
        # would all come back at the same moment, too.
        self._failures += 1
        wait = min(FIRST_WAIT_S * 2.0 ** (self._failures - 1), LONGEST_WAIT_S) * _draw.uniform(0.5, 1.0)
        self._not_before = time.monotonic() + (wait if answer.wait_s is None else answer.wait_s)
        self._outbox.troubles.note(self._key.digest, answer.text, answer.wait_s)
