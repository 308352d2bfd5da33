"""`globalvit predict`: what is in images, as a table, as files and drawn."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from globalvit.cli import tables
from globalvit.cli.answers import Answer, Answers, Areas, Classes, Objects, Read
from globalvit.cli.images import Failure, Reader, Source, Writer, find_images
from globalvit.cli.opening import ModelOptions, about, explained_memory, open_model, place, too_many
from globalvit.cli.options import UsageError, parse
from globalvit.cli.progress import Progress
from globalvit.detectors.limits import MOST_DETECTIONS, check_limit
from globalvit.train.fields import TrainConfig

if TYPE_CHECKING:
    from globalvit.tasks.task import Task

logger = logging.getLogger(__name__)
SUMMARY = "Say what is in images: classes, areas or objects, as a table, JSON, CSV and drawn images"
ANSWERS, DATA = "answers", "data"
NOT_FINITE = (
    "the model's scores are not finite numbers; try --precision fp32, and if that does not help the weights are damaged"
)


@dataclass(frozen=True, kw_only=True)
class PredictOptions(ModelOptions):
    """What `globalvit predict` is asked for."""

    images: tuple[str, ...] = field(
        default=(), metadata={"help": "images, folders or http(s) addresses", "metavar": "IMAGES"}
    )
    split: str | None = field(
        default=None, metadata=about(DATA, "predict all images of this split of --data-dir, such as test")
    )
    data_dir: str | None = field(
        default=None, metadata=about(DATA, "folder that holds the split (default: that of the checkpoint's run)")
    )
    top_k: int = field(default=5, metadata=about(ANSWERS, "classes that a classifier names for each image"))
    score_threshold: float = field(
        default=0.5, metadata=about(ANSWERS, "score that an object has to exceed, 0 to 1, in detection")
    )
    max_detections: int = field(
        default=MOST_DETECTIONS, metadata=about(ANSWERS, "objects of each image at most, the best ones, in detection")
    )
    json: Path | None = field(default=None, metadata=about(ANSWERS, "write the answers to this file"))
    csv: Path | None = field(default=None, metadata=about(ANSWERS, "write the answers to this file, a line each"))
    output: Path | None = field(
        default=None,
        metadata=about(ANSWERS, "folder for predictions.json, predictions.csv, label maps and drawn images"),
    )
    draw: bool = field(default=False, metadata=about(ANSWERS, "draw the answers on the images (PNG, in --output)"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k < 1:
            raise ValueError(f"--top-k {self.top_k} must be at least 1")
        if not 0 <= self.score_threshold < 1:
            raise ValueError(f"--score-threshold {self.score_threshold} must be 0 or more and under 1")
        check_limit(self.max_detections, "--max-detections")
        if self.draw and self.output is None:
            raise ValueError("--draw needs --output DIR, the folder for the drawn images")


def run(argv: Sequence[str], prog: str) -> int:
    """Say what is in the images; return the exit status, 1 if any image has no answer."""
    options = parse(PredictOptions, argv, prog, SUMMARY, positional=("images",))
    images, failures = find_images(_words(options, prog))
    made, settings = _open(options)
    total = len(images) + len(failures)
    with Progress(len(images), "predicting") as progress:
        reader = Reader(failures, progress)
        answers = list(_answers(made, settings, images, reader, options))
    try:
        _write(made, answers, reader.failures, options)
    finally:
        # Answers that cannot be written are at least shown.
        if answers:
            tables.show([{"image": answer["image"]} | made.row(answer) for answer in answers])
    if not answers:
        raise ValueError(f"none of the {total} images has an answer; the first: {reader.failures[0].reason}")
    return reader.finish(total)


def _words(options: PredictOptions, prog: str) -> list[str]:
    """The images named, and the folder of the split asked for."""
    words = list(options.images)
    if options.split is not None:
        from globalvit.data.common.folders import images_of_split

        data_dir = options.settings().data_dir
        if data_dir is None:
            raise UsageError(f"{prog} --split requires --data-dir; only a run folder names the data it was trained on")
        words.append(str(images_of_split(Path(data_dir), options.split)))
    if not words:
        raise UsageError(f"{prog} needs IMAGES or --split; see {prog} --help")
    return words


def _open(options: PredictOptions) -> tuple[Answers, TrainConfig]:
    """The model, what presents its answers, and the settings to run it with."""
    from globalvit.train.inputs import set_up

    task = open_model(options)
    settings = replace(options.settings(), model=task.spec.model)
    set_up(task, settings)
    return _presenter(task, options), settings


def _answers(
    made: Answers, settings: TrainConfig, images: Sequence[Source], reader: Reader, options: PredictOptions
) -> Iterator[Answer]:
    """Predict batch by batch; few images are held at a time."""
    writer = Writer(options.output) if options.output else None
    ready = reader.read(images, lambda image: made.read(image, is_drawn=options.draw))
    autocast = place(made.task, settings)
    batch_size = min(settings.batch_size, made.most_at_once or settings.batch_size)

    def predict(batch: Sequence[Read]) -> list[Answer]:
        with autocast(), explained_memory(too_many(len(batch))):
            return made.predict([one.given for one in batch])

    while batch := list(islice(ready, batch_size)):
        for source, one, prediction in _predicted(batch, predict, reader):
            answer = {"image": source.name} | made.to_json(prediction)
            if not _is_finite(answer):
                reader.fail(source.name, NOT_FINITE)
                continue
            try:
                if writer is not None and (raster := made.raster(prediction)) is not None:
                    answer["mask"] = writer.write(source, raster, "-mask")
                if writer is not None and one.seen is not None:
                    answer["drawn"] = writer.write(source, made.draw(one.seen, prediction))
            except (OSError, MemoryError) as error:
                reader.fail(source.name, error)
            else:
                yield answer


def _predicted(
    batch: Sequence[tuple[Source, Read]], predict: Callable[[Sequence[Read]], list[Answer]], reader: Reader
) -> Iterator[tuple[Source, Read, Answer]]:
    """Predict a batch; if that fails, one image at a time, so that one of them never costs the others' answers."""
    try:
        predictions = predict([one for _, one in batch])
    except (ValueError, MemoryError) as error:
        if len(batch) == 1:
            reader.fail(batch[0][0].name, error)
            return
        logger.warning("%s; these %d images are predicted one at a time", error, len(batch))
        for pair in batch:
            yield from _predicted([pair], predict, reader)
        return
    for (source, one), prediction in zip(batch, predictions, strict=True):
        yield source, one, prediction


def _is_finite(value: Any) -> bool:
    """Whether all numbers within are finite."""
    if isinstance(value, float):
        return math.isfinite(value)
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return all(map(_is_finite, inside))


def _presenter(task: "Task", options: PredictOptions) -> Answers:
    if task.kind == "segment":
        return Areas(task)
    return (
        Objects(task, options.score_threshold, options.max_detections)
        if task.kind == "detect"
        else Classes(task, options.top_k)
    )


def _write(made: Answers, answers: Sequence[Answer], failures: Sequence[Failure], options: PredictOptions) -> None:
    folder = options.output
    skipped = [failure._asdict() for failure in failures]
    for path in filter(None, (options.json, folder and folder / "predictions.json")):
        tables.write_json(path, {"predictions": answers, "skipped": skipped})
    for path in filter(None, (options.csv, folder and folder / "predictions.csv")):
        tables.write_csv(
            path, made.columns, [(answer["image"], *line) for answer in answers for line in made.lines(answer)]
        )
