"""The formats of images with objects that are found in folders."""

from pathlib import Path

from globalvit import extensions
from globalvit.data.detection.coco import CocoFormat
from globalvit.data.detection.formats import DetectionFormat
from globalvit.data.detection.voc import VocFormat
from globalvit.data.detection.yolo import YoloFormat

FORMATS: list[DetectionFormat] = [CocoFormat(), YoloFormat(), VocFormat()]


def register(form: DetectionFormat) -> None:
    """Add a format of your own; one of the same name is replaced.

    It is then found in folders that it matches, by every command of this process.
    """
    FORMATS[:] = [one for one in FORMATS if one.name != form.name] + [form]


def formats() -> list[DetectionFormat]:
    """The package's own formats, then those of extensions."""
    extensions.load()
    return FORMATS


def holds_objects(folder: Path, form: str | None = None) -> bool:
    """Whether a folder is a set of images with objects; the name of a format says so, or denies it."""
    return any(form == one.name if form else one.matches(folder) for one in formats())
