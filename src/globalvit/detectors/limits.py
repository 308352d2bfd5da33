"""How many detections of an image are kept. Needs no torch."""

# Detections of an image that COCO scores, and as many as may be asked for: a thousand regions are proposed.
MOST_DETECTIONS, HIGHEST_LIMIT = 100, 1000
# Of COCO's evaluation, which looks at all ranks: lower scores cost time and change nothing.
LEAST_SCORE = 0.05


def check_limit(number: int, name: str = "max_detections") -> int:
    """Return a limit of detections per image.

    Raises:
        ValueError: it is not 1 to 1000; the text calls it `name`.
    """
    if not 1 <= number <= HIGHEST_LIMIT:
        raise ValueError(f"expected {name} from 1 to {HIGHEST_LIMIT}, got {number}")
    return number
