"""`globalvit predict`: what is in images, as a table, as files and drawn."""

from collections.abc import Sequence

from globalvit.cli import tables
from globalvit.cli.options import UsageError, parse
from globalvit.console import Progress
from globalvit.jobs.images import Reader, find_images
from globalvit.jobs.predict import NEEDS_DATA, PredictOptions, Predictor, to_answers, words_of, write

SUMMARY = "Say what is in images: classes, areas or objects, as a table, JSON, CSV and drawn images"


def run(argv: Sequence[str], prog: str) -> int:
    """Say what is in the images; return the exit status, 1 if any image has no answer."""
    options = parse(PredictOptions, argv, prog, SUMMARY, positional=("images",))
    if options.split is not None and options.settings().data_dir is None:
        raise UsageError(f"{prog} {NEEDS_DATA}")
    words = words_of(options)
    if not words:
        raise UsageError(f"{prog} needs IMAGES or --split; see {prog} --help")
    images, failures = find_images(words)
    predictor = Predictor(options)
    total = len(images) + len(failures)
    with Progress(len(images), "predicting") as progress:
        reader = Reader(failures, progress)
        answers = list(to_answers(predictor, images, reader))
    try:
        write(predictor.made, answers, reader.failures, options)
    finally:
        # Answers that cannot be written are at least shown.
        if answers:
            tables.show([{"image": answer["image"]} | predictor.made.row(answer) for answer in answers])
    if not answers:
        raise ValueError(f"none of the {total} images has an answer; the first: {reader.failures[0].reason}")
    return reader.finish(total)
