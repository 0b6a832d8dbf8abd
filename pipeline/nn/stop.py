"""SIGTERM (a cluster takes the machine back) and SIGINT (Ctrl-C) as a wish that training grants after the running step."""

import signal
import sys
from types import FrameType, TracebackType

STOPPED_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, run the same command again
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """While open, signals set `is_requested`; after Ctrl-C a second signal ends the process at once.

    Not after SIGTERM, which SLURM sends twice within a moment when the time is over, and kills a little later anyway.
    """

    def __init__(self) -> None:
        self.is_requested = False

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.is_requested = True
        if number == signal.SIGINT:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def leave(self, step: int) -> None:
        print(f"stopped: saved at step {step} as asked by a signal; run the same command to go on", flush=True)
        sys.exit(STOPPED_EXIT_CODE)
