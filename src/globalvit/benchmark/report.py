"""Results as plain rows for JSON and CSV, and as the texts of tables."""

import statistics
from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

from globalvit.benchmark.cells import OURS, Cell, Size
from globalvit.benchmark.measure import Result

MIB = 2**20
Row = dict[str, Any]
Text = dict[str, str]
MODE_TITLES = {"inference": "inference", "train": "training step"}


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` (0 to 1) of the values lie, interpolated between neighbors."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def paired_ratio(theirs: Sequence[float], ours: Sequence[float]) -> float | None:
    """Return the median of theirs / ours over repetitions that ran one after the other; None if there are none.

    A clock rate that drifts slows both of a pair, and so leaves this ratio as it is.

    Raises:
        ValueError: the repetitions are not pairs.
    """
    pairs = list(zip(theirs, ours, strict=True))
    return statistics.median(a / b for a, b in pairs) if pairs else None


def images_per_second(batch_size: int, seconds: Sequence[float]) -> float:
    """Return images per second at the median time of a run."""
    return batch_size / statistics.median(seconds)


def rows(results: Sequence[Result], device: str) -> list[Row]:
    """One plain row for each network of each cell; those of ours hold a ratio for each peer."""
    return [_row(result, _beside(result, results), device) for result in results]


def _row(result: Result, beside: Sequence[Result], device: str) -> Row:
    cell, entry, seconds = result.cell, result.entry, result.seconds
    row = {
        "mode": cell.mode,
        "network": entry.name,
        "source": entry.source,
        "model": entry.model,
        "way": entry.way,
        "precision": cell.precision,
        "batch_size": cell.batch_size,
        "image_size": list(cell.image_size),
        "device": device,
        "params": result.params,
        "error": result.error,
        "images_per_second": None,
        "repetitions": len(seconds),
        "first_run_s": result.first_s,
        "compile_s": result.compile_s,
        "run_mib": _mib(result.run_bytes),
        "state_mib": _mib(result.state_bytes),
        "seconds": seconds,
    }
    if seconds:
        row |= _speed(cell, seconds)
    return row | {
        "speed_ratios": {other.entry.name: paired_ratio(other.seconds, seconds) for other in beside},
        "memory_ratios": {other.entry.name: _ratio(result.run_bytes, other.run_bytes) for other in beside},
    }


def _speed(cell: Cell, seconds: Sequence[float]) -> Row:
    return {
        "images_per_second": images_per_second(cell.batch_size, seconds),
        "ms": 1e3 * statistics.median(seconds),
        "ms_p10": 1e3 * percentile(seconds, 0.1),
        "ms_p90": 1e3 * percentile(seconds, 0.9),
        "ns_per_pixel": 1e9 * statistics.median(seconds) / (cell.batch_size * prod(cell.image_size)),
    }


def _beside(result: Result, results: Sequence[Result]) -> list[Result]:
    """The peers that took turns with one of ours, compiled as it is, where both have figures."""
    if result.entry.source != OURS or result.error is not None:
        return []
    return [
        other
        for other in results
        if other.cell is result.cell
        and other.entry.source != OURS
        and other.entry.compiler == result.entry.compiler
        and other.error is None
    ]


def flat(row: Row) -> Row:
    """A row without lists and tables, for CSV: ratios become columns named after their peer."""
    plain = {key: value for key, value in row.items() if not isinstance(value, (list, dict))}
    plain["image_size"] = size_text(row["image_size"])
    for kind in ("speed", "memory"):
        plain |= {f"{kind}_ratio {peer}": ratio for peer, ratio in row[f"{kind}_ratios"].items()}
    return plain


def csv_table(plain: Iterable[Row]) -> tuple[list[str], list[list[Any]]]:
    """Header and lines of flat rows, of which not all have all columns."""
    lines = [flat(row) for row in plain]
    header = list(dict.fromkeys(column for line in lines for column in line))
    return header, [[line.get(column) for column in header] for line in lines]


# Columns that stand in the title where they say the same in every row.
_SHARED = ("way", "precision", "batch", "pixels")


def speed_table(plain: Sequence[Row], mode: str) -> tuple[str, list[Text]]:
    """Title and rows of one mode's table."""
    chosen = [row for row in plain if row["mode"] == mode]
    peers = list(dict.fromkeys(peer for row in chosen for peer in row["speed_ratios"]))
    texts = [_text(row, peers) for row in chosen]
    shared = [column for column in _SHARED if len({text[column] for text in texts}) == 1]
    words = [MODE_TITLES[mode], *(_in_title(column, texts[0][column]) for column in shared), chosen[0]["device"]]
    words += [f"× beside {peers[0]}"] if len(peers) == 1 else []
    dull = {*shared, *(column for column in ("compile s", "why not") if not any(text[column] for text in texts))}
    return ", ".join(words), [{key: value for key, value in text.items() if key not in dull} for text in texts]


def _text(row: Row, peers: Sequence[str]) -> Text:
    spread = f"{_number(row.get('ms_p10'))}-{_number(row.get('ms_p90'))}" if "ms" in row else "–"
    text = {
        "network": row["network"],
        "way": row["way"],
        "precision": row["precision"],
        "pixels": size_text(row["image_size"]),
        "batch": str(row["batch_size"]),
        "images/s": _number(row["images_per_second"]),
        "ms": _number(row.get("ms")),
        "p10-p90": spread,
        "first s": _number(row["first_run_s"]),
        "compile s": _number(row["compile_s"]) if row["compile_s"] is not None else "",
        "run MiB": _number(row["run_mib"]),
        "state MiB": _number(row["state_mib"]),
    }
    for peer in peers:
        # The title names a single one.
        name = peer if len(peers) > 1 else ""
        text[f"speed × {name}".strip()] = _number(row["speed_ratios"].get(peer))
        text[f"memory × {name}".strip()] = _number(row["memory_ratios"].get(peer))
    return text | {"why not": row["error"] or ""}


def best_rows(results: Sequence[Result]) -> list[Text]:
    """Of each cell with several ways, the fastest one of ours beside each peer's fastest one."""
    texts = []
    for cell in dict.fromkeys(result.cell for result in results):
        live = [result for result in results if result.cell is cell and result.seconds]
        ours = [result for result in live if result.entry.source == OURS]
        peers = dict.fromkeys(result.entry.name for result in live if result.entry.source != OURS)
        if len({entry.way for entry in cell.entries}) == 1 or not ours:
            continue
        best = min(ours, key=_median)
        for peer in peers:
            other = min((result for result in live if result.entry.name == peer), key=_median)
            texts.append(_best_text(cell, best, other))
    return texts


def _best_text(cell: Cell, best: Result, other: Result) -> Text:
    return {
        "mode": MODE_TITLES[cell.mode],
        "precision": cell.precision,
        "pixels": size_text(cell.image_size),
        "batch": str(cell.batch_size),
        "ours": f"{best.entry.name} {best.entry.way}",
        "images/s": _number(images_per_second(cell.batch_size, best.seconds)),
        "peer": f"{other.entry.name} {other.entry.way}",
        "its images/s": _number(images_per_second(cell.batch_size, other.seconds)),
        "×": _number(paired_ratio(other.seconds, best.seconds)),
    }


def size_text(size: Sequence[int] | Size) -> str:
    """A side, or height×width."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]}×{size[1]}"


def _in_title(column: str, value: str) -> str:
    return {"batch": f"batch {value}", "pixels": f"{value} pixels"}.get(column, value)


def _median(result: Result) -> float:
    return statistics.median(result.seconds)


def _mib(count: int | None) -> float | None:
    return None if count is None else count / MIB


def _ratio(ours: int | None, theirs: int | None) -> float | None:
    return ours / theirs if ours is not None and theirs else None


def _number(value: float | None) -> str:
    """Three digits that count, and never fewer than there are before the point."""
    if value is None:
        return "–"
    size = abs(value)
    return f"{value:.{0 if size >= 100 else 1 if size >= 10 else 2}f}"
