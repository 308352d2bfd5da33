"""`globalvit predict`: predict classes, masks or boxes of images."""

from collections.abc import Sequence

from globalvit.cli import tables
from globalvit.cli.options import UsageError, parse
from globalvit.console import Progress
from globalvit.jobs.images import Reader, find_images
from globalvit.jobs.predict import NEEDS_DATA, PredictOptions, Predictor, to_answers, words_of, write

SUMMARY = "Predict classes, masks or boxes of images, as a table, JSON, CSV and drawn images"


def run(argv: Sequence[str], prog: str) -> int:
    """Predict the images and write the results; return the exit status, 1 if any image failed."""
    options = parse(PredictOptions, argv, prog, SUMMARY, positional=("images",))
    if options.split is not None and options.settings().data_dir is None:
        raise UsageError(f"{prog} {NEEDS_DATA}")
    words = words_of(options)
    if not words:
        raise UsageError(f"{prog} requires IMAGES or --split; see {prog} --help")
    images, failures = find_images(words)
    predictor = Predictor(options)
    total = len(images) + len(failures)
    with Progress(len(images), "predicting") as progress:
        reader = Reader(failures, progress)
        answers = list(to_answers(predictor, images, reader))
    try:
        write(predictor.made, answers, reader.failures, options)
    finally:
        # Print the predictions even if they cannot be written.
        if answers:
            tables.show([{"image": answer["image"]} | predictor.made.row(answer) for answer in answers])
    if not answers:
        raise ValueError(f"none of the {total} images could be predicted; first error: {reader.failures[0].reason}")
    return reader.finish(total)
