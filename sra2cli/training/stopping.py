"""Stopping when asked to: SIGINT, SIGTERM, SIGUSR1 (batch systems send it before a limit)."""

import signal
from collections.abc import Callable
from types import FrameType

import torch

from sra2cli.core import console, launcher
from sra2cli.core.processes import Group

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class BreakOff(BaseException):
    """Ends what a signal may end at once."""


class Stop:
    """The first signal asks to stop; a second one has its usual effect.

    Of several processes, all stop at the same step. What they agree by goes over the network of
    the CPUs, so that no device is waited for.
    """

    def __init__(self, group: Group):
        self.group = group
        self.signal = 0
        self._breaking = False
        self._before = {s: signal.getsignal(s) for s in SIGNALS}

    def __enter__(self) -> "Stop":
        for number in SIGNALS:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:
            console.say("stopping: saving a checkpoint first")
        self.signal = number
        if not launcher.launched():  # a launcher repeats the terminal's signal
            signal.signal(number, self._before[signal.Signals(number)])
        if self._breaking:
            self._breaking = False
            raise BreakOff

    def unless_asked(self, work: Callable[[], None]) -> None:
        """Do what the run will do again when it goes on: a signal breaks it off at once."""
        try:
            self._breaking = True
            if not self.signal:
                work()
            self._breaking = False
        except BreakOff:
            pass

    def agree(self, *flags: int) -> list[int]:
        """The signal by which any process was asked to stop (0: none), and the largest of each flag
        over all processes. All of them must ask."""
        own = [self.signal, *flags]
        if self.group.count == 1:
            return own
        shared = torch.tensor(own)
        torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
        return [int(flag) for flag in shared.tolist()]
