"""`report.html` of a validation: one file with all figures inside, without scripts, that needs no network."""

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from globalvit.atomic import write_text
from globalvit.jobs.gallery import Shown
from globalvit.printable import printable

if TYPE_CHECKING:
    from PIL import Image

    from globalvit.jobs.validate import Result

MOST_PAIRS, LONGEST_NAME = 20, 24
JUDGED = {"classify": "recall", "segment": "iou", "detect": "ap_box"}
HEADINGS = {
    "name": "class", "ap_box": "box AP", "ap_box_50": "box AP50", "ap_box_75": "box AP75", "ap_mask": "mask AP",
    "ap_mask_50": "mask AP50", "ap_mask_75": "mask AP75", "iou": "IoU", "f1": "F1", "score_threshold": "threshold",
}  # fmt: skip
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
img { max-width: 100%; height: auto; border-radius: 4px; }
.plot { background: #fff; padding: 4px; box-sizing: border-box; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .6rem; text-align: right; border-bottom: 1px solid #8886; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 6rem; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .85rem; }
"""


def write_report(path: Path, result: "Result", gallery: Sequence[Shown], settings: Mapping[str, Any]) -> None:
    """Write the report."""
    title = escape(f"{result.model}: validation")
    body = "\n".join(_sections(result, gallery, settings))
    write_text(
        path,
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,"><style>{STYLE}</style></head>\n'
        f"<body><h1>{title}</h1>\n{body}\n</body></html>\n",
    )


def _sections(result: "Result", gallery: Sequence[Shown], settings: Mapping[str, Any]) -> Iterator[str]:
    scores = {name: f"{value:.0f}" if name == "count" else f"{value:.3f}" for name, value in result.scores.items()}
    yield "<h2>Scores</h2>" + _table(["score", "value"], scores.items())
    yield from _curves(result)
    yield from _confusion(result)
    yield "<h2>Classes, worst first</h2>" + _classes(result)
    for kind, shown in groupby(gallery, key=lambda one: one.kind):
        figures = "\n".join(
            f"<figure>{_image(one.image, one.text, 'JPEG')}<figcaption>{_text(one.text)}</figcaption></figure>"
            for one in shown
        )
        yield f'<h2>{escape(kind)}</h2><div class="gallery">{figures}</div>'
    if result.skipped:
        yield "<h2>Skipped images</h2>" + _table(["image", "reason"], result.skipped.items())
    yield "<h2>Settings</h2>" + _table(["setting", "value"], settings.items())


def _curves(result: "Result") -> Iterator[str]:
    if result.curves is None:
        return
    from globalvit.train.plots import curves_figure, to_image

    names = [_short(row["name"]) for row in result.rows]
    image = to_image(curves_figure(result.curves, names))
    text = "Precision over recall and F1 over the score threshold, per class and mean, boxes at IoU 0.5"
    yield f"<h2>Precision, recall and F1</h2><p>{text}.</p>{_image(image, text, 'PNG', 'plot')}"


def _confusion(result: "Result") -> Iterator[str]:
    from globalvit.train.plots import confusion_figure, to_image

    names, matrix = [_short(name) for name in result.matrix_names], result.confusion_matrix
    if matrix is None:
        return
    text = "Confusion matrix: rows are the true classes, columns the predicted ones"
    yield f"<h2>Confusion matrix</h2><p>{text}.</p>"
    yield _image(to_image(confusion_figure(matrix, names)), text, "PNG", "plot")
    pairs = [
        (count, row, column)
        for row, counts in enumerate(matrix)
        for column, count in enumerate(counts)
        if count and row != column
    ]
    pairs = sorted(pairs, key=lambda pair: -pair[0])[:MOST_PAIRS]
    if pairs:
        whole = [max(1, sum(counts)) for counts in matrix]
        # How much background there is cannot be counted.
        empty = len(result.rows)
        shares = ["–" if row == empty else f"{100 * count / whole[row]:.1f}" for count, row, _ in pairs]
        rows = [(names[row], names[at], count, share) for (count, row, at), share in zip(pairs, shares, strict=True)]
        yield "<h2>Most confused pairs</h2>" + _table(["true", "predicted", "count", "% of true"], rows)


def _classes(result: "Result") -> str:
    judged = "ap" if "ap" in result.rows[0] else JUDGED[result.kind]
    rows = sorted(result.rows, key=lambda row: (row[judged] is None, row[judged] or 0))
    keys = ["name", *(key for key in rows[0] if key not in ("name", "label"))]
    cells = [[_cell(row[key], 3 if key == "score_threshold" else 1) for key in keys] for row in rows]
    return _table([HEADINGS.get(key, key) for key in keys], cells)


def _cell(value: Any, digits: int) -> Any:
    return "–" if value is None else f"{value:.{digits}f}" if isinstance(value, float) else value


def _table(head: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    top = "".join(f"<th>{escape(one)}</th>" for one in head)
    lines = "\n".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def _image(image: "Image.Image", text: str, form: str, kind: str = "") -> str:
    buffer = io.BytesIO()
    image.save(buffer, form)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img class="{kind}" {size} alt="{_text(text)}" src="data:image/{form.lower()};base64,{data}">'


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _text(value: Any) -> str:
    return escape(printable(str(value)))
