"""Callbacks of a training: when they are called, with which record, and how they stop the run.

A callback is any object with some of the methods `on_step`, `on_epoch`, `on_checkpoint`, `on_evaluate` and `on_end`.
Each is called with one record, in this order if several are due after the same step. A method that raises
`StopTraining`, or returns it, ends the run after that step: the run saves a checkpoint and can be resumed. Any other
exception ends the run at once with a `CallbackError`; its last checkpoint stays as it is. Of several processes only
that of rank 0 calls callbacks, and the others wait for it.

Example::

    class Patience:
        def on_evaluate(self, evaluation):
            if evaluation.scores["top1"] > 95:
                raise gv.StopTraining
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from globalvit.closest import suggest


class StopTraining(Exception):  # noqa: N818 - as StopIteration, it is a wish and not an error
    """Raised or returned by a callback to end the run after this step: it saves a checkpoint and can be resumed."""


class CallbackError(RuntimeError):
    """A callback failed; the exception that it raised is the cause."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """Where the run stands.

    Attributes:
        run: folder of the run.
        step: optimizer steps done.
        total_steps: steps of the whole run.
        epoch: epochs done, a fraction within an epoch.
    """

    run: Path
    step: int
    total_steps: int
    epoch: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Step(Record):
    """Given to `on_step` after every optimizer step.

    Attributes:
        loss: of the step, the mean over all processes.
        lr: learning rate of the step; some layers may have a part of it.
        grad_norm: norm of the gradient before clipping.
        speed: images per second over all processes.
    """

    loss: float
    lr: float
    grad_norm: float
    speed: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch(Record):
    """Given to `on_epoch` after the last step of an epoch, before its checkpoint and its evaluation.

    Attributes:
        loss: mean over the steps of the epoch that were done since the run was started or resumed.
    """

    loss: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint(Record):
    """Given to `on_checkpoint` when a checkpoint has been saved.

    Attributes:
        path: its folder, which `open_checkpoint` opens; older ones are removed, see `checkpoint_hist`.
    """

    path: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation(Record):
    """Given to `on_evaluate` after an evaluation.

    Attributes:
        scores: by name, percent for accuracies, plain for a loss; those of the averaged weights begin with `ema_`.
        is_best: whether this is the best score so far.
    """

    scores: dict[str, float]
    is_best: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class End(Record):
    """Given to `on_end` when the run is over; not after an error.

    Attributes:
        scores: of the best evaluation; empty if there was none.
        reason: `finished`, `early stopping`, the name of a signal, or the callback that stopped the run.
    """

    scores: dict[str, float]
    reason: str


RECORDS: dict[str, type[Record]] = {
    "on_step": Step,
    "on_epoch": Epoch,
    "on_checkpoint": Checkpoint,
    "on_evaluate": Evaluation,
    "on_end": End,
}


class Callbacks:
    """The callbacks of a run.

    Attributes:
        names: methods that some of them have.

    Raises:
        ValueError: an object has none of the methods, or one that is never called.
    """

    def __init__(self, callbacks: Sequence[object] = ()) -> None:
        if not isinstance(callbacks, list | tuple):
            raise ValueError(f"expected callbacks as a list, got {type(callbacks).__name__}; use callbacks=[…]")
        self.callbacks = tuple(callbacks)
        self.names = frozenset(name for callback in self.callbacks for name in _methods(callback))

    def call(self, name: str, record: Record, remedy: str) -> str:
        """Call a method of every callback that has it.

        Args:
            name: of the method.
            record: what it is given.
            remedy: what to say after an error about the run's last checkpoint.

        Returns:
            The callback that wants to stop the run, or an empty text.

        Raises:
            CallbackError: a callback failed.
        """
        stopped_by = ""
        for callback in self.callbacks:
            method = getattr(callback, name, None)
            if method is None:
                continue
            title = f"{type(callback).__name__}.{name}"
            try:
                result = method(record)
            except StopTraining:
                result = StopTraining
            except Exception as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                raise CallbackError(f"callback {title} failed after step {record.step}: {reason}; {remedy}") from error
            if result is StopTraining or isinstance(result, StopTraining):
                stopped_by = stopped_by or f"callback {title}"
        return stopped_by


def _methods(callback: object) -> list[str]:
    """The methods of a callback that are called."""
    if isinstance(callback, type):
        raise ValueError(
            f"expected an object as a callback, got the class {callback.__name__}; use {callback.__name__}()"
        )
    title = type(callback).__name__
    found = [name for name in RECORDS if hasattr(callback, name)]
    for name in dir(callback):
        if name.startswith("on_") and name not in RECORDS:
            raise ValueError(
                f"callback {title} has a method {name}, which is never called.{suggest(name, RECORDS)} "
                f"Known: {', '.join(RECORDS)}"
            )
    if not found:
        raise ValueError(f"expected a callback with some of {', '.join(RECORDS)}, got {title}")
    for name in found:
        if not callable(getattr(callback, name)):
            raise ValueError(f"expected {title}.{name} to be a method, got {type(getattr(callback, name)).__name__}")
    return found
