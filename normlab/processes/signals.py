"""The end of a run that a signal asks for: SIGTERM, SIGINT (Ctrl-C), or SIGUSR2 (submitit's, ahead of a time limit)."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from normlab.processes.lifetimes import takes_signals

INSISTENCE = 1.0  # seconds after which a Ctrl-C is a second one; `timeout` and terminals may send one signal twice
RANK_SECONDS = 25  # that a rank has to save; its launcher kills what is left after 30


class Interrupted(BaseException):
    """A signal ends the run here. As KeyboardInterrupt, it is no Exception: nothing that tries again may catch it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.signal = number


class Stop:
    """Takes the signals while it is entered: raises Interrupted at once, or waits where a `with patience()` asks to.

    A second Ctrl-C ends even what waits, but in ranks: to them the launcher repeats every signal.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)

    def __init__(self) -> None:
        self.signal = 0  # the first that came
        self._waits = False
        self._since = 0.0

    def __enter__(self) -> "Stop":
        taken = self.SIGNALS if takes_signals() else ()
        self._previous = {number: signal.getsignal(number) for number in taken}
        for number in self._previous:
            signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        ends_soon = self.signal and dist.is_initialized()  # then a repeated signal must not cut the records short
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if ends_soon else handler)

    def _take(self, number: int, _frame: object) -> None:
        if self.signal:
            insists = number == signal.SIGINT and time.monotonic() - self._since > INSISTENCE
            if insists and not dist.is_initialized():
                raise Interrupted(number)
            return
        self.signal, self._since = number, time.monotonic()
        if dist.is_initialized():
            signal.alarm(RANK_SECONDS)  # a rank whose peers are gone may hang where no handler runs
        if not self._waits:
            raise Interrupted(number)

    @contextmanager
    def patience(self, wanted: bool = True) -> Iterator[None]:
        """Inside, a signal is only noted, or with False again raises, one noted before included."""
        before, self._waits = self._waits, wanted
        try:
            self.check()
            yield
        finally:
            self._waits = before

    def check(self) -> None:
        """Raise what came, unless signals wait: the exception may have been lost in a place that swallows all."""
        if self.signal and not self._waits:
            raise Interrupted(self.signal)

    def requested(self, device: torch.device) -> int:
        """The signal that any rank got, on all ranks alike; 0: none."""
        if dist.is_initialized():
            flag = torch.tensor(self.signal, device=device)
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            return int(flag)
        return self.signal
