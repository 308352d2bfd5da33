"""Output of `predict` for each kind of task: table rows, JSON, CSV lines, drawn images."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from globalvit.data.classification.imagenet import readable

if TYPE_CHECKING:
    from PIL import Image

    from globalvit.tasks.task import Task

Answer = dict[str, Any]


class Read(NamedTuple):
    """An image that was read: the model's input, and the image to draw the answer on (None if nothing is drawn)."""

    given: Any
    seen: "Image.Image | None"


class Answers(ABC):
    """Predictions of one kind of task.

    Attributes:
        columns: headings of the CSV file.
        most_at_once: maximum number of images per forward pass.
    """

    columns: ClassVar[tuple[str, ...]]
    most_at_once: ClassVar[int | None] = None

    def __init__(self, task: "Task") -> None:
        self.task = task

    def read(self, image: "Image.Image", *, is_drawn: bool) -> Read:
        """Return what is kept of an image until it is predicted."""
        return Read(image, image if is_drawn else None)

    @abstractmethod
    def predict(self, images: Sequence[Any]) -> list[Answer]:
        """Return the task's predictions."""

    @abstractmethod
    def to_json(self, prediction: Answer) -> Answer:
        """Return a prediction as plain values."""

    @abstractmethod
    def lines(self, answer: Answer) -> Iterator[tuple[Any, ...]]:
        """Yield a plain answer as CSV lines, without the image's name."""

    @abstractmethod
    def row(self, answer: Answer) -> dict[str, str]:
        """Return a plain answer as a table row, without the image's name."""

    @abstractmethod
    def draw(self, image: "Image.Image", prediction: Answer) -> "Image.Image":
        """Return the image with its prediction drawn on it."""

    def raster(self, prediction: Answer) -> "Image.Image | None":  # noqa: ARG002 - only some have one
        """Return the prediction as an image, or None if the task has none."""
        return None


class Classes(Answers):
    """The most likely classes of each image."""

    columns = ("image", "rank", "label", "name", "score")

    def __init__(self, task: "Task", top_k: int) -> None:
        super().__init__(task)
        self.top_k = top_k

    def read(self, image: "Image.Image", *, is_drawn: bool) -> Read:
        """Return the input, and a copy to draw on; photographs are not kept in full size."""
        from globalvit.jobs.drawing import fit

        return Read(self.task.preprocessing(image), fit(image) if is_drawn else None)

    def predict(self, images: Sequence[Any]) -> list[Answer]:
        """See `Classifier.predict`."""
        from globalvit.tasks.classify import Classifier

        assert isinstance(self.task, Classifier)
        return self.task.predict(list(images), top_k=self.top_k, batch_size=len(images))

    def to_json(self, prediction: Answer) -> Answer:
        """Return labels, readable names and scores."""
        return prediction | {"names": list(readable(prediction["names"]))}

    def lines(self, answer: Answer) -> Iterator[tuple[Any, ...]]:
        """Yield one line per class, best first."""
        classes = zip(answer["labels"], answer["names"], answer["scores"], strict=True)
        for rank, (label, name, score) in enumerate(classes, 1):
            yield rank, label, name, score

    def row(self, answer: Answer) -> dict[str, str]:
        """Return the best class, and the others in one cell."""
        scores = [f"{100 * score:.1f}" for score in answer["scores"]]
        others = ", ".join(f"{name} {score}" for name, score in zip(answer["names"][1:], scores[1:], strict=True))
        return {"class": answer["names"][0], "%": scores[0], "then": others}

    def draw(self, image: "Image.Image", prediction: Answer) -> "Image.Image":
        """Return the image with the classes and their bars below it."""
        from globalvit.jobs.drawing import label_map

        return label_map(image, readable(prediction["names"]), prediction["scores"])


class Labels(Classes):
    """The labels of each image that reach their threshold, which may be none."""

    def row(self, answer: Answer) -> dict[str, str]:
        """Return the labels and their scores in one cell."""
        pairs = zip(answer["names"], answer["scores"], strict=True)
        return {"labels, %": ", ".join(f"{name} {100 * score:.1f}" for name, score in pairs) or "none"}


class Areas(Answers):
    """The class of every pixel."""

    columns = ("image", "rank", "label", "name", "share")
    most_at_once = 4

    def predict(self, images: Sequence[Any]) -> list[Answer]:
        """See `Segmenter.predict`."""
        return self.task.predict(list(images), batch_size=len(images))

    def to_json(self, prediction: Answer) -> Answer:
        """Return the classes found and their shares of the image, largest first."""
        labels = {name: label for label, name in enumerate(prediction["names"])}
        areas = [{"label": labels[name], "name": name, "share": share} for name, share in prediction["areas"].items()]
        height, width = prediction["mask"].shape
        return {"height": height, "width": width, "areas": areas}

    def lines(self, answer: Answer) -> Iterator[tuple[Any, ...]]:
        """Yield one line per class, largest first."""
        for rank, area in enumerate(answer["areas"], 1):
            yield rank, area["label"], area["name"], area["share"]

    def row(self, answer: Answer) -> dict[str, str]:
        """Return the shares of the image in one cell."""
        shares = ", ".join(f"{area['name']} {100 * area['share']:.1f}" for area in answer["areas"])
        return {"size": f"{answer['width']}×{answer['height']}", "classes, % of the pixels": shares}

    def draw(self, image: "Image.Image", prediction: Answer) -> "Image.Image":
        """Return the image colored by class, with a legend."""
        from globalvit.drawing.overlay import overlay_labels
        from globalvit.drawing.palette import default_palette

        names = prediction["names"]
        return overlay_labels(image, prediction["mask"].numpy(), default_palette(len(names)), names=names)

    def raster(self, prediction: Answer) -> "Image.Image":
        """Return the labels as an indexed image, in the input image's size."""
        from PIL import Image

        from globalvit.drawing.palette import default_palette

        raster = Image.fromarray(prediction["mask"].numpy())
        raster.putpalette(default_palette(len(prediction["names"])).tobytes())
        return raster


class Tiles(NamedTuple):
    """How images are cut: the side of the tiles in pixels, the fraction that neighbors share, tiles per pass."""

    side: int
    overlap: float
    batch_size: int


class Objects(Answers):
    """Boxes and masks."""

    columns = ("image", "rank", "label", "name", "score", "left", "top", "right", "bottom")
    most_at_once = 4

    def __init__(
        self, task: "Task", score_threshold: float | None, max_detections: int, tiles: Tiles | None = None
    ) -> None:
        super().__init__(task)
        self.score_threshold, self.max_detections, self.tiles = score_threshold, max_detections, tiles

    def predict(self, images: Sequence[Any]) -> list[Answer]:
        """See `Detector.predict`."""
        from globalvit.tasks.detect import Detector

        assert isinstance(self.task, Detector)
        tiles = self.tiles
        return self.task.predict(
            list(images),
            batch_size=tiles.batch_size if tiles else len(images),
            score_threshold=self.score_threshold,
            max_detections=self.max_detections,
            **({"tile": tiles.side, "overlap": tiles.overlap} if tiles else {}),
        )

    def to_json(self, prediction: Answer) -> Answer:
        """Return the objects, best first; masks as COCO's uncompressed run lengths."""
        from globalvit.data.detection.instances import RunLengths

        plain = zip(
            prediction["labels"].tolist(), prediction["names"], prediction["scores"].tolist(),
            prediction["boxes"].tolist(), strict=True,
        )  # fmt: skip
        objects = [{"label": label, "name": name, "score": score, "box": box} for label, name, score, box in plain]
        for item, mask_HW in zip(objects, prediction.get("masks", ()), strict=False):
            runs = RunLengths.of(mask_HW.numpy())
            item["mask"] = {"size": list(runs.size), "counts": list(runs.counts)}
        return {"objects": objects}

    def lines(self, answer: Answer) -> Iterator[tuple[Any, ...]]:
        """Yield one line per object, best first."""
        for rank, item in enumerate(answer["objects"], 1):
            yield rank, item["label"], item["name"], item["score"], *item["box"]

    def row(self, answer: Answer) -> dict[str, str]:
        """Return the number of objects by class, and the best score."""
        objects = answer["objects"]
        counts = Counter(item["name"] for item in objects)
        found = ", ".join(f"{count} × {name}" for name, count in counts.most_common())
        best = f"{100 * objects[0]['score']:.1f}" if objects else "–"
        return {"objects": str(len(objects)), "found": found or "nothing", "best %": best}

    def draw(self, image: "Image.Image", prediction: Answer) -> "Image.Image":
        """Return the image with boxes, names, scores and masks."""
        from globalvit.drawing.instances import draw_instances

        return draw_instances(
            image,
            prediction["boxes"],
            prediction["labels"],
            self.task.class_names,
            scores=prediction["scores"],
            masks=prediction.get("masks"),
        )
