"""SIGTERM and SIGINT as a wish to stop: the run saves at the next step and ends."""

import os
import signal
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """While entered, the first SIGTERM or SIGINT is only noted; a second one acts as usual.

    Attributes:
        name: the signal that arrived, such as `SIGTERM`; empty while none did.
        ended_by: number of the signal that ended the run before its end, here or on another process; 0 for none.
    """

    def __init__(self) -> None:
        self.name = ""
        self.ended_by = 0
        self._process = os.getpid()
        self._former: dict[signal.Signals, object] = {}

    def __bool__(self) -> bool:
        return bool(self.name)

    @property
    def number(self) -> int:
        """The number of the signal that arrived; 0 while none did."""
        return signal.Signals[self.name].value if self.name else 0

    @property
    def exit_status(self) -> int:
        """128 plus the number of the signal that ended the run, as shells count; 0 for a run that reached its end."""
        return 128 + self.ended_by if self.ended_by else 0

    def __enter__(self) -> "StopSignal":
        # Python lets only the main thread set handlers; a run in another thread is stopped by other means.
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        # A loader's worker inherits this handler: it goes on feeding the step that is being finished.
        if os.getpid() != self._process:
            return
        self.name = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._former = {}
