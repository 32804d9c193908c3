"""Virtual time, and resources that several jobs share."""

import heapq
import math
from collections.abc import Callable
from itertools import count
from typing import Any

RESOLUTION_S = 1e-9


class VirtualClock:
    """Virtual time in seconds. Calls that are due at the same time happen in the order in which they were scheduled."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()
        self._stopped = False

    def at(self, when: float, call: Callable[..., None], *arguments: Any) -> None:
        """Schedule a call for the time ``when``, or for now if ``when`` has passed."""
        heapq.heappush(self._due, (max(when, self.now), next(self._order), call, arguments))

    def after(self, delay_s: float, call: Callable[..., None], *arguments: Any) -> None:
        """Schedule a call for ``delay_s`` from now."""
        heapq.heappush(self._due, (self.now + delay_s, next(self._order), call, arguments))

    def run(self) -> None:
        """Make the calls in the order of their times, until :meth:`stop`."""
        self._stopped = False
        due = self._due
        while due and not self._stopped:
            self.now, _, call, arguments = heapq.heappop(due)
            call(*arguments)

    def stop(self) -> None:
        """Make :meth:`run` return after the current call."""
        self._stopped = True


class Job:
    """Work in progress at a :class:`Shared` resource."""

    __slots__ = ("amount", "arguments", "cancelled", "done")

    def __init__(self, amount: float, done: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.amount, self.done, self.arguments, self.cancelled = amount, done, arguments, False


class Shared:
    """Processor sharing: all jobs are served at the same rate, at most ``each`` per job and ``capacity`` in total.

    For cores, ``capacity`` is their number, ``each`` is 1, and amounts are in core-seconds. For a network card, both
    are in bytes per second, and amounts in bytes. An infinite ``capacity`` needs a finite ``each``.
    """

    def __init__(self, clock: VirtualClock, capacity: float, each: float) -> None:
        self._clock, self._capacity, self._each = clock, capacity, each
        self._jobs: list[tuple[float, int, Job]] = []  # each with the value of _service at which the job is done
        self._order = count()
        self._active = 0
        self._rate = each  # the rate at which each job is served now
        self._service = 0.0  # amount served so far to a job that began when the resource was last idle
        self._served_at = 0.0
        self._wakes_at = math.inf
        self.served = 0.0
        """The total work of all completed jobs."""

    def start(self, amount: float, done: Callable[..., None], *arguments: Any) -> Job:
        """Begin a job. ``done`` is called at its end."""
        if not self._active:  # starting at 0 again keeps the numbers small, and so exact
            self._service = 0.0
            self._jobs.clear()
        self._serve(1)
        job = Job(amount, done, arguments)
        heapq.heappush(self._jobs, (self._service + amount, next(self._order), job))
        if self._jobs[0][2] is job:
            self._plan()
        return job

    def cancel(self, job: Job) -> None:
        """Cancel a job that is not done yet."""
        job.cancelled = True
        self._serve(-1)
        self._plan()

    def _serve(self, change: int) -> None:
        """Serve the jobs up to the current time. Then change the number of jobs by ``change``."""
        now = self._clock.now
        if self._active:
            self._service += (now - self._served_at) * self._rate
        self._served_at = now
        self._active += change
        if self._active:
            share = self._capacity / self._active
            self._rate = min(self._each, share)

    def _plan(self) -> None:
        """Schedule a wake-up for the end of the next job. A wake-up that is too early schedules another one."""
        jobs = self._jobs
        while jobs and jobs[0][2].cancelled:
            heapq.heappop(jobs)
        if jobs:
            due = self._served_at + (jobs[0][0] - self._service) / self._rate
            if due < self._wakes_at:
                self._wakes_at = due
                self._clock.at(due, self._wake, due)

    def _wake(self, due: float) -> None:
        if due != self._wakes_at:
            return
        self._wakes_at = math.inf
        until = self._service + (due - self._served_at + RESOLUTION_S) * self._rate
        jobs, done = self._jobs, []
        while jobs and (jobs[0][0] <= until or jobs[0][2].cancelled):
            job = heapq.heappop(jobs)[2]
            if not job.cancelled:
                done.append(job)
                self.served += job.amount
        self._serve(-len(done))
        self._plan()
        for job in done:
            if not job.cancelled:  # an earlier job may have cancelled this one
                job.done(*job.arguments)
