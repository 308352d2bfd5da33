"""`globalvit predict`: the likeliest classes of pictures, as a table, as files and written under the pictures."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from globalvit.cli import tables
from globalvit.cli.opening import ModelOptions, about, explained_memory, open_model, place
from globalvit.cli.options import parse
from globalvit.cli.pictures import Picture, find_pictures
from globalvit.cli.progress import Progress
from globalvit.data.imagenet import readable
from globalvit.train.fields import TrainConfig

if TYPE_CHECKING:
    from PIL import Image

    from globalvit.tasks.task import Task

logger = logging.getLogger(__name__)
SUMMARY = "Name what is in pictures: a table, JSON, CSV, labelled pictures"
ANSWERS = "answers"
CSV_COLUMNS = ("image", "rank", "label", "name", "score")
Answer = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PredictOptions(ModelOptions):
    """What `globalvit predict` is asked for."""

    images: tuple[str, ...] = field(metadata={"help": "pictures, folders or http(s) addresses", "metavar": "IMAGES"})
    top_k: int = field(default=5, metadata=about(ANSWERS, "classes to name for each picture"))
    json: Path | None = field(default=None, metadata=about(ANSWERS, "write the answers to this file"))
    csv: Path | None = field(default=None, metadata=about(ANSWERS, "write the answers to this file, one line a class"))
    output: Path | None = field(
        default=None, metadata=about(ANSWERS, "folder for predictions.json, predictions.csv and labelled pictures")
    )
    draw: bool = field(default=False, metadata=about(ANSWERS, "write labelled pictures (PNG) to --output"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k < 1:
            raise ValueError(f"--top-k {self.top_k} must be at least 1")
        if self.draw and self.output is None:
            raise ValueError("--draw needs --output DIR, the folder for the labelled pictures")


def run(argv: Sequence[str], prog: str) -> int:
    """Name what is in the pictures; return the exit status."""
    options = parse(PredictOptions, argv, prog, SUMMARY, positional=("images",))
    pictures = find_pictures(options.images)
    task, settings = open_model(options), options.settings()
    with Progress(len(pictures), "predicting") as progress:
        reader = _Reader(progress)
        answers = list(_answers(task, settings, reader.read(pictures), options))
    _write(answers, reader.skipped, options)
    if not answers:
        raise ValueError(f"none of the {len(pictures)} pictures could be read")
    tables.show([_row(answer) for answer in answers])
    if reader.skipped:
        logger.warning("%d of %d pictures could not be read and were left out", len(reader.skipped), len(pictures))
    return 0


class _Reader:
    """Reads pictures, leaving out, naming and remembering those that cannot be read."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.skipped: list[dict[str, str]] = []

    def read(self, pictures: Iterable[Picture]) -> Iterator[tuple[Picture, "Image.Image"]]:
        """Yield each readable picture with its pixels."""
        from globalvit.data.images import UnreadableImage

        for picture in pictures:
            self.progress.advance()
            try:
                image = picture.read()
            except (OSError, UnreadableImage) as error:
                reason = " ".join(str(error).split())
                logger.warning("left out: %s", reason if picture.name in reason else f"{picture.name}: {reason}")
                self.skipped.append({"image": picture.name, "reason": reason})
            else:
                yield picture, image


def _answers(
    task: "Task", settings: TrainConfig, read: Iterator[tuple[Picture, "Image.Image"]], options: PredictOptions
) -> Iterator[Answer]:
    """Predict batch by batch; photographs are not kept in their full size."""
    from globalvit.cli.drawing import fit
    from globalvit.tasks.classify import Classifier

    assert isinstance(task, Classifier)
    labeller = _Labeller(options.output) if options.draw and options.output else None
    ready = ((picture, task.preprocessing(image), labeller and fit(image)) for picture, image in read)
    autocast = place(task, settings)
    while batch := list(islice(ready, settings.batch_size)):
        with autocast(), explained_memory(settings.batch_size):
            predictions = task.predict([images for _, images, _ in batch], top_k=options.top_k, batch_size=len(batch))
        for (picture, _, small), prediction in zip(batch, predictions, strict=True):
            answer = {"image": picture.name} | prediction | {"names": list(readable(prediction["names"]))}
            yield answer | ({"drawn": labeller.draw(picture, small, answer)} if labeller and small else {})


class _Labeller:
    """Writes labelled pictures into a folder, never two to one name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.taken: set[Path] = set()

    def draw(self, picture: Picture, image: "Image.Image", answer: Answer) -> str:
        """Write the picture with its classes below; return the file's path."""
        from globalvit.atomic import replace_with
        from globalvit.cli.drawing import label_picture

        path = self._free_path(self.folder / picture.inside.with_suffix(".png"))
        with replace_with(path) as temporary:
            label_picture(image, answer["names"], answer["scores"]).save(temporary, "PNG")
        return str(path)

    def _free_path(self, wanted: Path) -> Path:
        path, number = wanted, 1
        while path in self.taken:
            number += 1
            path = wanted.with_stem(f"{wanted.stem}-{number}")
        self.taken.add(path)
        return path


def _row(answer: Answer) -> dict[str, str]:
    scores = [f"{100 * score:.1f}" for score in answer["scores"]]
    others = ", ".join(f"{name} {score}" for name, score in zip(answer["names"][1:], scores[1:], strict=True))
    return {"picture": answer["image"], "class": answer["names"][0], "%": scores[0], "then": others}


def _write(answers: Sequence[Answer], skipped: Sequence[dict[str, str]], options: PredictOptions) -> None:
    folder = options.output
    for path in filter(None, (options.json, folder and folder / "predictions.json")):
        tables.write_json(path, {"predictions": answers, "skipped": skipped})
    for path in filter(None, (options.csv, folder and folder / "predictions.csv")):
        tables.write_csv(path, CSV_COLUMNS, [line for answer in answers for line in _lines(answer)])


def _lines(answer: Answer) -> Iterator[tuple[Any, ...]]:
    """The answer as CSV lines, best class first."""
    classes = zip(answer["labels"], answer["names"], answer["scores"], strict=True)
    for rank, (label, name, score) in enumerate(classes, 1):
        yield answer["image"], rank, label, name, score
