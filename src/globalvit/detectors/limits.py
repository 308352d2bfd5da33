"""Limits of what a detector is asked for. Needs no torch."""

# Detections of an image that COCO scores, and as many as may be asked for: a thousand regions are proposed.
MOST_DETECTIONS, HIGHEST_LIMIT = 100, 1000
# Of COCO's evaluation, which looks at all ranks: lower scores cost time and change nothing.
LEAST_SCORE = 0.05
# Side of the smallest tile in pixels; how much of a tile the next one shares, by default and at most.
SMALLEST_TILE = 32
TILE_OVERLAP, LARGEST_OVERLAP = 0.2, 0.9


def check_limit(number: int, name: str = "max_detections") -> int:
    """Return a limit of detections per image.

    Raises:
        ValueError: it is not 1 to 1000; the text calls it `name`.
    """
    if not 1 <= number <= HIGHEST_LIMIT:
        raise ValueError(f"expected {name} from 1 to {HIGHEST_LIMIT}, got {number}")
    return number


def check_tiles(tile: int | None, overlap: float, prefix: str = "") -> None:
    """Check the side of the tiles that an image is cut into, and the fraction that neighbors share.

    Raises:
        ValueError: the side is under 32 pixels, or the fraction is not 0 to 0.9.
    """
    if tile is not None and tile < SMALLEST_TILE:
        raise ValueError(f"expected {prefix}tile of {SMALLEST_TILE} pixels or more, got {tile}")
    if not 0 <= overlap <= LARGEST_OVERLAP:
        raise ValueError(f"expected {prefix}overlap from 0 to {LARGEST_OVERLAP}, got {overlap}")
