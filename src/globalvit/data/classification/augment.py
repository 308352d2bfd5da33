"""timm's training augmentation on PIL images, with what its authors and Pillow's do not agree on put right.

timm is imported when the first pipeline is built: that takes seconds.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from PIL import Image, ImageOps

Augmentation = Callable[[Image.Image], Image.Image]
FEWEST_BITS = 1


@lru_cache(maxsize=16)
def build_pipeline(
    *,
    image_size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    hflip: float,
    vflip: float,
    aa: str | None,
    color_jitter: float | tuple[float, ...] | None,
    interpolation: str,
    mean: tuple[float, ...],
) -> Augmentation:
    """The random part of training's transform: RGB in, RGB of `image_size` out; draws from the global generators.

    Raises:
        ValueError: `aa` is not timm's notation.
    """
    from timm.data.transforms_factory import transforms_imagenet_train

    options: dict[str, Any] = {"scale": scale, "ratio": ratio, "hflip": hflip, "vflip": vflip, "mean": mean}
    options |= {"color_jitter": color_jitter, "auto_augment": aa or None, "interpolation": interpolation}
    try:
        parts: Any = transforms_imagenet_train(image_size, **options, separate=True)
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(
            f"aa={aa!r}, color_jitter={color_jitter!r} are not understood; timm's notation is like "
            "rand-m9-mstd0.5-inc1, original-mstd0.5, augmix-m3-w3, 3a, and one strength or 3 or 4"
        ) from error
    crop, change, _ = parts
    for operation in _operations(change.transforms):
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize
    return lambda image: change(crop(image))


def _operations(transforms: Iterable[Any]) -> Iterable[Any]:
    """The single operations of timm's RandAugment, AugMix (`ops`) and AutoAugment (`policy`, a list of lists)."""
    for transform in transforms:
        yield from getattr(transform, "ops", ())
        for pair in getattr(transform, "policy", ()):
            yield from pair


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """The operation as timm has it, but no image is refused.

    At the highest magnitude timm keeps 0 bits, with which older Pillow made a black image and Pillow 13 raises.
    """
    return image if bits >= 8 else ImageOps.posterize(image, max(bits, FEWEST_BITS))
