"""Where a COCO data set keeps its annotations: one file per split."""

import re
from pathlib import Path

from globalvit.data.common.folders import YEAR, split_folders

ANNOTATIONS = "annotations"
_FILE = re.compile(rf"instances_(?P<split>.+?)(?:{YEAR})?\.json")
# Roboflow writes this file beside the images of each split.
BESIDE = "_annotations.coco.json"


def annotation_files(data_dir: Path) -> dict[str, Path]:
    """Return the file of annotations of each split; of `instances_train2017.json` and `instances_train.json` the first.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder does not exist.
    """
    files: dict[str, Path] = {}
    folders = split_folders(data_dir)
    for name in folders:
        if (data_dir / name / BESIDE).is_file():
            files[name] = data_dir / name / BESIDE
    if ANNOTATIONS in folders:
        for path in sorted((data_dir / ANNOTATIONS).iterdir(), reverse=True):
            match = _FILE.fullmatch(path.name)
            if match and path.is_file() and not path.name.startswith("."):
                files[match["split"]] = path
    return dict(sorted(files.items()))
