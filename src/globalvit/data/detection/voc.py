"""Pascal VOC's XML: one file per image.

    DATA_DIR/Annotations/NAME.xml   DATA_DIR/JPEGImages/NAME.jpg   DATA_DIR/ImageSets/Main/{train,val}.txt
    DATA_DIR/{train,valid}/NAME.xml   beside NAME.jpg

Pixels are counted from 1 and both corners lie within the box, so `xmin` 1 is the left edge; where any file has a corner
below 1, all count from 0. Objects with `difficult` 1 are neither learned nor counted as missed, as crowds
are not.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from globalvit.data.common.folders import leaves, listed, split_folders
from globalvit.data.common.images import OversizedImage, UnreadableImage, look
from globalvit.data.common.orientation import UPRIGHT, Size
from globalvit.data.common.splits import role_of
from globalvit.data.common.walk import search
from globalvit.data.detection.coco_json import Labels, read_labels
from globalvit.data.detection.coco_plausible import Words
from globalvit.data.detection.coco_values import number, shown, whole
from globalvit.data.detection.formats import Annotated

logger = logging.getLogger(__name__)

ANNOTATIONS = "annotations"
IMAGES = ("JPEGImages", "images", "")
LISTS = "ImageSets/Main"
SUFFIX = ".xml"
WORDS = Words(
    "xmin, ymin, xmax, ymax in pixels",
    "difficult 1",
    "if these are to be learned, --crowd-as-instances reads them as single objects",
)
CORNERS = ("xmin", "ymin", "xmax", "ymax")
READERS, CHUNK = 8, 500
HEAD_BYTES = 4096
MOST_LOOKED_AT = 100
UNKNOWN = (1, 1)


class VocFormat:
    """Boxes in XML files."""

    name = "voc"

    def matches(self, folder: Path) -> bool:
        """Whether a folder holds XML files of annotations where VOC or a labeling tool puts them."""
        return bool(_places(folder))

    def describe(self, folder: Path) -> str:
        """The folder of the XML files."""
        return f"Pascal VOC's XML, {_places(folder)[0].labels.relative_to(folder).as_posix()}/*.xml"

    def splits(self, folder: Path) -> Sequence[str]:
        """Names of the splits that have a list in ImageSets/Main, or a folder."""
        return [place.split for place in _places(folder)]

    def open(
        self, folder: Path, split: str, classes: Sequence[str] | None = None, *, crowd_as_instances: bool = False
    ) -> Annotated:
        """Read the labels of one split; its classes are those of all splits, by name, or `classes`."""
        places = _places(folder)
        place = next(one for one in places if one.split == split)
        files = _read_split(folder, place)
        # Files name only the classes that occur in them, and few show where counting begins: all splits together do.
        others = _read_others({one.labels for one in places}, files)
        found = {one.name for file in files for one in file.objects}
        if classes is None or not found <= set(classes):
            classes = sorted(found.union(one.name for one in others))
        if not classes:
            raise ValueError(f"{place.labels} holds no objects; expected <object> with <name> and <bndbox>")
        objects = chain((one for file in files for one in file.objects), others)
        low = next((one for one in objects if min(one.corners[:2]) < 1), None)
        if low is not None:
            logger.info(
                "%s: pixels are counted from 0, since %s has the corner %g, %g; VOC counts from 1",
                *(place.labels, low.where, low.corners[0], low.corners[1]),
            )
        labels = _labels(files, classes, split, first=1 if low is None else 0)
        table = read_labels(place.labels, labels, WORDS, crowd_as_instances=crowd_as_instances)
        return Annotated(table, lambda: folder, labels)


@dataclass(frozen=True)
class _Place:
    """Where the files of a split are.

    Attributes:
        split: its name.
        images: the folder of the images.
        labels: the folder of the XML files.
        listed: the file that lists the split's images; None takes all of the folder.
    """

    split: str
    images: Path
    labels: Path
    listed: Path | None = None


@dataclass(frozen=True)
class _Object:
    """An object: its place in the file, class, corners (xmin, ymin, xmax, ymax), and whether it is difficult."""

    where: str
    name: str
    corners: list[float]
    difficult: bool


@dataclass
class _File:
    """What is known of one image.

    Attributes:
        image: its name below the data set's folder.
        source: its XML file; empty where there is none.
        size: height and width as the XML states them, or those of the upright image; None where it cannot be read.
        objects: what is in it.
        fault: what is wrong with the XML.
    """

    image: str
    source: str = ""
    size: Size | None = None
    objects: list[_Object] = field(default_factory=list)
    fault: str = ""


def _places(folder: Path) -> list[_Place]:
    """The splits in a folder."""
    names = split_folders(folder)
    for name in names:
        if name.casefold() == ANNOTATIONS:
            labels = next((at for at in (folder / name, folder / name / "xmls") if _holds_xml(at)), None)
            if labels is not None:
                images = _image_folder(folder)
                return _listed_places(folder, images, labels) or [_Place("train", images, labels)]
    places: list[_Place] = []
    for name in filter(role_of, names):
        inner = [one for one in split_folders(folder / name) if one.casefold() == ANNOTATIONS]
        labels = next((at for at in (folder / name, *(folder / name / one for one in inner)) if _holds_xml(at)), None)
        if labels is not None:
            # XML files in a folder of their own leave the images another one.
            is_apart = labels != folder / name
            places.append(_Place(name, _image_folder(folder / name) if is_apart else folder / name, labels))
    return places or ([_Place("train", folder, folder)] if _holds_xml(folder) else [])


def _image_folder(folder: Path) -> Path:
    """The folder of images beside one of XML files."""
    return next(folder / name for name in IMAGES if (folder / name).is_dir())


def _listed_places(folder: Path, images: Path, labels: Path) -> list[_Place]:
    """The splits that ImageSets/Main lists; `trainval`, or a single list, stands for `train` where that is missing."""
    lists = {path.stem: path for path in sorted((folder / LISTS).glob("*.txt"))}
    named = {name: path for name, path in lists.items() if role_of(name)}
    if "train" not in map(role_of, named):
        whole_list = lists.get("trainval") or (next(iter(lists.values())) if len(lists) == 1 and not named else None)
        named |= {"train": whole_list} if whole_list else {}
    return [_Place(name, images, labels, path) for name, path in named.items()]


def _holds_xml(folder: Path) -> bool:
    """Whether XML files of annotations lie in a folder; the first one is looked into."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.lower().endswith(SUFFIX) and not entry.name.startswith(".") and entry.is_file():
                with open(entry.path, "rb") as file:  # noqa: PTH123 (as fast as the scan)
                    head = file.read(HEAD_BYTES)
                return b"<annotation" in head or b"<\0a\0n\0n\0o\0t\0a\0t\0i\0o\0n" in head
    return False


def _read_split(folder: Path, place: _Place) -> list[_File]:
    """Read the XML file of every image of a split.

    Raises:
        FileNotFoundError: none of the images is found.
        ValueError: no images, or XML that cannot be used; the text names file and line.
    """
    found = {os.path.splitext(name)[0]: name for name in search(place.images).images}  # noqa: PTH122 (a million)
    xmls = {path.relative_to(place.labels).as_posix()[: -len(SUFFIX)]: path for path in _xml_files(place.labels)}
    stems = sorted(found.keys() | xmls.keys()) if place.listed is None else list(_listed(place.listed))
    if not stems:
        raise ValueError(f"no images in the split {place.split!r}: {place.listed or place.images} names none")
    if not found.keys() & set(stems):
        raise FileNotFoundError(
            f"none of the {len(stems)} images of the split {place.split!r} is in {place.images}, such as {stems[0]}.jpg"
        )
    below = os.path.relpath(place.images, folder).replace(os.sep, "/")
    prefix = "" if below == "." else f"{below}/"
    wanted = [(prefix, stem, found, xmls.get(stem)) for stem in stems]
    with ThreadPoolExecutor(READERS) as pool:
        chunks = [wanted[start : start + CHUNK] for start in range(0, len(wanted), CHUNK)]
        read = pool.map(lambda chunk: [_read_file(folder, *one) for one in chunk], chunks)
        files = [file for chunk in read for file in chunk]
    faults = [file.fault for file in files if file.fault]
    if faults:
        raise ValueError(faults[0] + (f" (and {len(faults) - 1} more files like it)" if len(faults) > 1 else ""))
    return files


def _xml_files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix.lower() == SUFFIX and path.name[0] != ".")


def _listed(path: Path) -> Iterator[str]:
    """The images that a list names; lists of one class have a number after each name, and are not for detection."""
    for number_, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        columns = line.split()
        if not columns:
            continue
        if leaves(path.parent, path.parent, columns[0]):
            raise ValueError(f"{path}:{number_}: {shown(columns[0])} leads out of the data set; expected a name")
        yield columns[0]


def _read_file(folder: Path, prefix: str, stem: str, found: Mapping[str, str], path: Path | None) -> _File:
    """Read the XML file of one image; where no image has its name, `<filename>` says which one it is for."""
    read = _File(prefix + found.get(stem, f"{stem}.jpg"), str(path or ""))
    try:
        if path is not None:
            stated = os.path.splitext(_read_xml(read, path))[0]  # noqa: PTH122 (a million)
            if stem not in found and stated in found:
                read.image = prefix + found[stated]
    except (ValueError, OSError) as error:
        read.fault = str(error)
    if read.size is None:
        try:
            orientation, stored = look(folder / read.image, str(folder / read.image))
            read.size = UPRIGHT[orientation].size(stored)
        except (UnreadableImage, OversizedImage, OSError):
            # Reading it fails later, and is counted then.
            return read
    return read


def _read_xml(read: _File, path: Path) -> str:
    """Read size and objects from an XML file; return the name of the image that it states."""
    root = _parsed(path)
    if root.tag != "annotation":
        raise ValueError(f"{path}: expected <annotation>, got <{root.tag}>")
    size = root.find("size")
    sides = [] if size is None else [whole((size.findtext(side) or "").strip()) for side in ("height", "width")]
    if len(sides) == 2 and all(side is not None and side > 0 for side in sides):
        read.size = (int(sides[0] or 0), int(sides[1] or 0))
    for item in root.iterfind("object"):
        where = f"{path}:{item.get('line')}"
        name = (item.findtext("name") or "").strip()
        if not name:
            raise ValueError(f"{where}: the object has no <name>; expected its class")
        box = item.find("bndbox")
        stated = [None if box is None else (box.findtext(corner) or "").strip() for corner in CORNERS]
        corners = [number(value) for value in stated]
        if any(corner is None for corner in corners):
            raise ValueError(
                f"{where}: the object {shown(name)} has <bndbox> {', '.join(map(shown, stated))}; expected numbers "
                "<xmin>, <ymin>, <xmax>, <ymax> in pixels"
            )
        difficult = (item.findtext("difficult") or "0").strip()
        if whole(difficult) not in (0, 1):
            raise ValueError(f"{where}: the object {shown(name)} has <difficult> {shown(difficult)}; expected 0 or 1")
        read.objects.append(_Object(where, name, [corner or 0.0 for corner in corners], whole(difficult) == 1))
    return (root.findtext("filename") or "").strip()


def _parsed(path: Path) -> Element:
    """Read XML; every element has its `line`.

    Raises:
        ValueError: it is not XML, or defines a document type, and with it perhaps entities that fill the memory.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()

    def refuse(*_: Any) -> None:
        raise ValueError(f"{path}:{parser.CurrentLineNumber}: <!DOCTYPE> is not allowed here; remove it")

    parser.StartElementHandler = lambda tag, attributes: builder.start(
        tag, attributes | {"line": str(parser.CurrentLineNumber)}
    )
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
    except expat.ExpatError as error:
        raise ValueError(f"{path}:{error.lineno}: this is not XML: {expat.ErrorString(error.code)}") from None
    return builder.close()


def _read_others(folders: Iterable[Path], files: Sequence[_File]) -> list[_Object]:
    """The objects in the XML files of other splits; those that cannot be used are an error of their own split."""
    known = {file.source for file in files}
    paths = [path for folder in sorted(folders) for path in _xml_files(folder) if str(path) not in known]
    with ThreadPoolExecutor(READERS) as pool:
        chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
        return [one for chunk in pool.map(_objects_in, chunks) for one in chunk]


def _objects_in(paths: Sequence[Path]) -> list[_Object]:
    found: list[_Object] = []
    for path in paths:
        with suppress(ValueError, OSError):
            _read_xml(read := _File(""), path)
            found += read.objects
    return found


def _labels(files: Sequence[_File], classes: Sequence[str], split: str, *, first: int) -> Labels:
    """The labels of a split as COCO has them: boxes from 0 on, where the files count from `first`."""
    labels, number_of = Labels(classes), {name: label for label, name in enumerate(classes)}
    without = [file for file in files if not file.source]
    if without:
        logger.info("%s: %d of %d images have no XML file and show no objects", split, len(without), len(files))
    unknown = [file.image for file in files if file.size is None]
    if unknown:
        logger.warning("%s: %d images cannot be read: %s", split, len(unknown), listed(unknown, 3))
    for file in files:
        labels.add_image(file.image, file.size or UNKNOWN, file.source)
        for one in file.objects if file.size else ():
            left, top, right, bottom = one.corners
            box = [left - first, top - first, right - left + first, bottom - top + first]
            row = {"category_id": number_of[one.name], "bbox": box, "iscrowd": int(one.difficult)}
            labels.add_object(f"{one.where} ({one.name})", row)
    return labels
