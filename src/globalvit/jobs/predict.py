"""Batched prediction, and the files that results are written to."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from globalvit.detectors.limits import MOST_DETECTIONS, TILE_OVERLAP, check_limit, check_tiles
from globalvit.jobs import files
from globalvit.jobs.answers import Answer, Answers, Areas, Classes, Labels, Objects, Read, Tiles
from globalvit.jobs.images import Failure, Reader, Source, Writer
from globalvit.jobs.opening import RUNNING, ModelOptions, about, explained_memory, open_model, place, too_many

if TYPE_CHECKING:
    from globalvit.tasks.task import Task

logger = logging.getLogger(__name__)
ANSWERS, DATA = "answers", "data"
NEEDS_DATA = "--split requires --data-dir; only a run folder names the data it was trained on"
NOT_FINITE = (
    "the model's scores are not finite numbers; try --precision fp32; if that does not help, the weights are damaged"
)


@dataclass(frozen=True, kw_only=True)
class PredictOptions(ModelOptions):
    """Options of `globalvit predict`."""

    images: tuple[str, ...] = field(
        default=(), metadata={"help": "images, folders, patterns or http(s) URLs", "metavar": "IMAGES"}
    )
    split: str | None = field(
        default=None, metadata=about(DATA, "predict all images of this split of --data-dir, such as test")
    )
    data_dir: str | None = field(
        default=None,
        metadata=about(DATA, "data folder that contains the split (default: that of the checkpoint's run)"),
    )
    top_k: int = field(default=5, metadata=about(ANSWERS, "classes to report per image, in classification"))
    score_threshold: float | None = field(
        default=None,
        metadata=about(
            ANSWERS,
            "report objects with a score above this, 0 to 1, in detection (default: the best of each class, as the "
            "run's evaluation chose it, or 0.05)",
        ),
    )
    max_detections: int = field(
        default=MOST_DETECTIONS, metadata=about(ANSWERS, "maximum objects per image, best first, in detection")
    )
    eval_flip: bool | None = field(
        default=None, metadata=about(RUNNING, "average predictions with those of the flipped image")
    )
    tile: int | None = field(
        default=None,
        metadata=about(
            ANSWERS, "cut images into tiles of this side in pixels and merge their objects, for small objects"
        ),
    )
    overlap: float | None = field(
        default=None,
        metadata=about(ANSWERS, f"fraction of a tile that it shares with the next, 0 to 0.9 (default: {TILE_OVERLAP})"),
    )
    json: Path | None = field(default=None, metadata=about(ANSWERS, "write the predictions to this file"))
    csv: Path | None = field(default=None, metadata=about(ANSWERS, "write the predictions to this file, one line each"))
    output: Path | None = field(
        default=None,
        metadata=about(ANSWERS, "folder for predictions.json, predictions.csv, label maps and drawn images"),
    )
    draw: bool = field(default=False, metadata=about(ANSWERS, "draw the predictions on the images (PNG, in --output)"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k < 1:
            raise ValueError(f"--top-k {self.top_k} must be at least 1")
        if self.score_threshold is not None and not 0 <= self.score_threshold < 1:
            raise ValueError(f"--score-threshold {self.score_threshold} must be at least 0 and less than 1")
        check_limit(self.max_detections, "--max-detections")
        if self.overlap is not None and self.tile is None:
            raise ValueError("--overlap requires --tile, the side of the tiles in pixels")
        check_tiles(self.tile, TILE_OVERLAP if self.overlap is None else self.overlap, "--")
        if self.draw and self.output is None:
            raise ValueError("--draw requires --output DIR, the folder for the drawn images")


class Prediction(NamedTuple):
    """A model's prediction for one image.

    Attributes:
        source: where the image comes from.
        read: the model's input.
        answer: as `model.predict` gives it.
    """

    source: Source
    read: Read
    answer: Answer


class Predictor:
    """A model that is ready to predict, with the settings of its run and the given options.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        ValueError: the model or a setting is invalid.
    """

    def __init__(self, options: PredictOptions) -> None:
        from globalvit.train.inputs import set_up

        task = open_model(options)
        self.options = options
        settings = replace(options.settings(), model=task.spec.model)
        set_up(task, settings)
        self.channels = task.preprocessing.channels
        self.tiles_at_once = options.batch_size or min(settings.batch_size, Objects.most_at_once or settings.batch_size)
        self.made = _presenter(task, options, self.tiles_at_once)
        self.autocast: Callable[[], AbstractContextManager[Any]] = place(task, settings)
        self.batch_size = min(settings.batch_size, self.made.most_at_once or settings.batch_size)

    def predict(self, images: Iterable[Source], reader: Reader) -> Iterator[Prediction]:
        """Predict batch by batch, holding few images in memory; failures go to `reader`."""
        ready = reader.read(images, self._prepare, self.channels)
        while batch := list(islice(ready, self.batch_size)):
            for source, read, answer in _predicted(batch, self._predict, reader):
                if _is_finite(answer):
                    yield Prediction(source, read, answer)
                else:
                    reader.fail(source.name, FloatingPointError(NOT_FINITE))

    def _prepare(self, image: Any) -> Read:
        from torch import Tensor

        if isinstance(image, Tensor):
            # A tensor is already preprocessed, and there is no image to draw on.
            return Read(image, None)
        return self.made.read(image, is_drawn=self.options.draw)

    def _predict(self, batch: Sequence[Read]) -> list[Answer]:
        with self.autocast(), explained_memory(too_many(self.tiles_at_once if self.options.tile else len(batch))):
            return self.made.predict([one.given for one in batch])


def to_answers(predictor: Predictor, images: Iterable[Source], reader: Reader) -> Iterator[Answer]:
    """Yield each prediction as plain values, with the files written for it."""
    writer = Writer(predictor.options.output) if predictor.options.output else None
    for prediction in predictor.predict(images, reader):
        try:
            answer = _to_answer(predictor.made, prediction, writer)
        except (OSError, MemoryError) as error:
            reader.fail(prediction.source.name, error)
        else:
            yield answer


def results(predictor: Predictor, images: Iterable[Source], reader: Reader) -> Iterator[Answer]:
    """Yield each image with the output of `model.predict`, and write the requested files."""
    options, answers = predictor.options, []
    writer = Writer(options.output) if options.output else None
    for prediction in predictor.predict(images, reader):
        if options.output or options.json or options.csv:
            answers.append(_to_answer(predictor.made, prediction, writer))
        yield {"image": prediction.source.name} | prediction.answer
    write(predictor.made, answers, reader.failures, options)


def _to_answer(made: Answers, prediction: Prediction, writer: Writer | None) -> Answer:
    source, read, found = prediction
    answer = {"image": source.name} | made.to_json(found)
    if writer is not None and (raster := made.raster(found)) is not None:
        answer["mask"] = writer.write(source, raster, "-mask")
    if writer is not None and read.seen is not None:
        answer["drawn"] = writer.write(source, made.draw(read.seen, found))
    return answer


def words_of(options: PredictOptions) -> list[str]:
    """Return the given images, and the folder of the requested split.

    Raises:
        ValueError: the folder of the split is unknown.
    """
    words = list(options.images)
    if options.split is not None:
        from globalvit.data.common.folders import images_of_split

        data_dir = options.settings().data_dir
        if data_dir is None:
            raise ValueError(f"predict {NEEDS_DATA}")
        words.append(str(images_of_split(Path(data_dir), options.split)))
    return words


def _predicted(
    batch: Sequence[tuple[Source, Read]], predict: Callable[[Sequence[Read]], list[Answer]], reader: Reader
) -> Iterator[tuple[Source, Read, Answer]]:
    """Predict a batch; if that fails, predict one image at a time, so that one bad image does not lose the others."""
    try:
        predictions = predict([one for _, one in batch])
    except (ValueError, MemoryError) as error:
        if len(batch) == 1:
            reader.fail(batch[0][0].name, error)
            return
        logger.warning("%s; predicting these %d images one at a time", error, len(batch))
        for pair in batch:
            yield from _predicted([pair], predict, reader)
        return
    for (source, one), prediction in zip(batch, predictions, strict=True):
        yield source, one, prediction


def _is_finite(value: Any) -> bool:
    """Return whether all numbers are finite."""
    if isinstance(value, float):
        return math.isfinite(value)
    if hasattr(value, "isfinite"):
        return bool(value.isfinite().all())
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return all(map(_is_finite, inside))


def _presenter(task: "Task", options: PredictOptions, tiles_at_once: int) -> Answers:
    if options.tile is not None and task.kind != "detect":
        slide = "; for windows, train with --eval-mode slide" if task.kind == "segment" else ""
        raise ValueError(f"--tile requires a detector; {task.spec.model} is not one{slide}")
    if task.kind == "segment":
        return Areas(task)
    if task.kind == "detect":
        overlap = TILE_OVERLAP if options.overlap is None else options.overlap
        tiles = None if options.tile is None else Tiles(options.tile, overlap, tiles_at_once)
        return Objects(task, options.score_threshold, options.max_detections, tiles)
    if task.spec.multi_label:
        if options.top_k != PredictOptions.top_k:
            raise ValueError(
                f"--top-k {options.top_k} requires a single-label classifier; {task.spec.model} is a multi-label "
                "model, which reports each label that reaches its threshold; leave --top-k out"
            )
        return Labels(task, task.spec.num_classes)
    return Classes(task, options.top_k)


def write(made: Answers, answers: Sequence[Answer], failures: Sequence[Failure], options: PredictOptions) -> None:
    """Write predictions.json and predictions.csv if they were requested."""
    folder = options.output
    skipped = [failure._asdict() for failure in failures]
    for path in filter(None, (options.json, folder and folder / "predictions.json")):
        files.write_json(path, {"predictions": answers, "skipped": skipped})
    for path in filter(None, (options.csv, folder and folder / "predictions.csv")):
        files.write_csv(
            path, made.columns, [(answer["image"], *line) for answer in answers for line in made.lines(answer)]
        )
