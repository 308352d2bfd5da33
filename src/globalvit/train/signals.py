"""SIGTERM and SIGINT as a wish to stop: the run saves at the next step and ends."""

import os
import signal
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """While entered, the first SIGTERM or SIGINT is only noted; a second one acts as usual.

    Attributes:
        name: the signal that came, such as `SIGTERM`; empty while none did.
    """

    def __init__(self) -> None:
        self.name = ""
        self._process = os.getpid()
        self._former: dict[signal.Signals, object] = {}

    def __bool__(self) -> bool:
        return bool(self.name)

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
