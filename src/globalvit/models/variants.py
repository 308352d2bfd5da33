"""The size tables of the papers, and the words a model is asked for in. No torch here: listing models costs nothing.

GC ViT: arXiv 2206.09959, tables 1 and S.1, and the sizes released with its weights. GPViT: arXiv 2212.06795, table 1.
"""

from dataclasses import asdict, dataclass, replace
from math import floor
from operator import index
from typing import Any, Literal

from globalvit import extensions

Form = Literal["classification", "segmentation", "detection", "one_stage"]
Kind = Literal["classify", "segment", "detect"]
Window = tuple[int, int, int, int]
Size = tuple[int, int]

SMALLEST_IMAGE = 32
# Window sides of the paper at 224 pixels, as parts of the image side: 7, 7, 14, 7.
WINDOW_PARTS: Window = (32, 32, 16, 32)
# Smaller images get windows in proportion, larger ones the variant's own.
OWN_WINDOW_FROM = 224
DETECTION_WINDOW: Window = (24, 24, 24, 24)
# Blocks of GPViT that its segmentation systems look at.
SEGMENTATION_OUTPUTS = (2, 5, 8, 11)


@dataclass(frozen=True, kw_only=True, slots=True)
class GCViTConfig:
    """A GC ViT backbone.

    Attributes:
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        width: channels of the first stage; stage i has width · 2^i.
        mlp_ratio: hidden channels of an MLP as a multiple of its input's.
        window: side of the attention window in tokens, stage by stage.
        layer_scale: initial value of the residual branches' scales, None where the variant has none.
        drop_path: rate of the last block; it grows linearly from 0 over all blocks.
        image_size: side of the square images the variant was made for, in pixels.
        in_channels: channels of the images.
        query_pools: how many feature-extract blocks of each stage's global query end in a max-pool.
        output_norms: `last`, one LN on the last map (classification); `every`, one on each map (detection form).
    """

    depths: tuple[int, int, int, int]
    num_heads: tuple[int, int, int, int]
    width: int
    mlp_ratio: float
    window: Window = (7, 7, 14, 7)
    layer_scale: float | None = None
    drop_path: float = 0.0
    image_size: int = 224
    in_channels: int = 3
    query_pools: tuple[int, int, int, int] = (3, 2, 0, 0)
    output_norms: Literal["last", "every"] = "last"

    def __post_init__(self) -> None:
        if not len(self.depths) == len(self.num_heads) == len(self.window) == len(self.query_pools) == 4:
            raise ValueError(f"GC ViT has four stages; got depths={self.depths} num_heads={self.num_heads}")
        for channels, heads in zip(self.channels, self.num_heads, strict=True):
            if channels % heads:
                raise ValueError(f"num_heads={heads} must divide the stage's {channels} channels")
        if min(self.window) < 1:
            raise ValueError(f"window={self.window} must be at least 1 in every stage")
        if self.in_channels < 1:
            raise ValueError(f"in_channels={self.in_channels} must be at least 1")
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"drop_path={self.drop_path} must be in [0, 1)")

    @property
    def channels(self) -> tuple[int, int, int, int]:
        """Channels of the four stages."""
        return (self.width, self.width * 2, self.width * 4, self.width * 8)

    def segmentation_form(self) -> "GCViTConfig":
        """The backbone of segmenters: as for classification, with an LN on every output."""
        return replace(self, output_norms="every")

    def detection_form(self) -> "GCViTConfig":
        """The published detection backbone: window 24, a pooled query in stage 3, an LN on every output."""
        return replace(self, window=DETECTION_WINDOW, query_pools=(3, 2, 1, 0), output_norms="every", drop_path=0.2)


_TINY = GCViTConfig(depths=(3, 4, 19, 5), num_heads=(2, 4, 8, 16), width=64, mlp_ratio=3.0, drop_path=0.2)
_LARGE = GCViTConfig(
    depths=(3, 4, 19, 5), num_heads=(6, 12, 24, 48), width=192, mlp_ratio=2.0, layer_scale=1e-5, drop_path=0.5
)
_SMALL = replace(_LARGE, num_heads=(3, 6, 12, 24), width=96, drop_path=0.3)

GCVIT: dict[str, GCViTConfig] = {
    "gcvit_xxtiny": replace(_TINY, depths=(2, 2, 6, 2)),
    "gcvit_xtiny": replace(_TINY, depths=(3, 4, 6, 5)),
    "gcvit_tiny": _TINY,
    "gcvit_tiny2": replace(_TINY, depths=(3, 4, 29, 5), drop_path=0.25),
    "gcvit_small": _SMALL,
    "gcvit_small2": replace(_SMALL, depths=(3, 4, 23, 5), mlp_ratio=3.0, drop_path=0.35),
    "gcvit_base": replace(_LARGE, num_heads=(4, 8, 16, 32), width=128),
    "gcvit_large": _LARGE,
    "gcvit_large_384": replace(_LARGE, window=(12, 12, 24, 12), drop_path=0.1, image_size=384),
    "gcvit_large_512": replace(_LARGE, window=(16, 16, 32, 16), drop_path=0.1, image_size=512),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class GPViTConfig:
    """A GPViT backbone.

    Attributes:
        width: channels of every block.
        stem_convs: 3×3 convolutions between the first one and the projection to tokens.
        pooling: how tokens become an image vector: `group`, one learned query; `mean`.
        drop_path: rate of the last block; it grows linearly from 0 over all blocks.
        depth: blocks.
        num_heads: heads of the local blocks, half of them vertical and half horizontal.
        num_group_heads: heads of gathering and scattering.
        mlp_ratio: hidden channels of an MLP as a multiple of its input's.
        stripe: width of a stripe in tokens.
        group_tokens: (block, number of group tokens) of the group propagation blocks; the others are local.
        image_size: side of the square images the variant was made for, in pixels.
        in_channels: channels of the images.
        outputs: blocks whose tokens the backbone gives as maps; the last one passes the final LN, the others their own.
    """

    width: int
    stem_convs: int
    pooling: Literal["group", "mean"]
    drop_path: float = 0.2
    depth: int = 12
    num_heads: int = 12
    num_group_heads: int = 6
    mlp_ratio: float = 4.0
    stripe: int = 2
    group_tokens: tuple[tuple[int, int], ...] = ((1, 64), (4, 32), (7, 32), (10, 16))
    image_size: int = 224
    in_channels: int = 3
    outputs: tuple[int, ...] = (11,)

    def __post_init__(self) -> None:
        if self.width % self.num_heads or self.width % self.num_group_heads or self.num_heads % 2:
            raise ValueError(f"width={self.width} must be a multiple of the heads, which halve into two directions")
        if self.in_channels < 1:
            raise ValueError(f"in_channels={self.in_channels} must be at least 1")
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"drop_path={self.drop_path} must be in [0, 1)")
        if list(self.outputs) != sorted(set(self.outputs)) or not set(self.outputs) <= set(range(self.depth)):
            raise ValueError(f"outputs={self.outputs} must be growing numbers of blocks under {self.depth}")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the maps."""
        return (self.width,) * len(self.outputs)

    def segmentation_form(self) -> "GPViTConfig":
        """The published segmentation backbone: the maps of four blocks, drop path 0.1."""
        return replace(self, outputs=SEGMENTATION_OUTPUTS, drop_path=0.1)

    def detection_form(self) -> "GPViTConfig":
        """The published detection backbone: no maps but those that the adapter makes, drop path 0.1."""
        return replace(self, outputs=(), drop_path=0.1)


GPVIT: dict[str, GPViTConfig] = {
    "gpvit_l1": GPViTConfig(width=216, stem_convs=0, pooling="group"),
    "gpvit_l2": GPViTConfig(width=348, stem_convs=1, pooling="group"),
    "gpvit_l3": GPViTConfig(width=432, stem_convs=1, pooling="mean", drop_path=0.3),
    "gpvit_l4": GPViTConfig(width=624, stem_convs=2, pooling="mean", drop_path=0.3),
}

# Every backbone by name, in the order of the papers' tables.
VARIANTS: dict[str, GCViTConfig | GPViTConfig] = {**GCVIT, **GPVIT}

# What can be put on a backbone, and the kind of task it makes; without a head a model classifies.
HEADS: dict[str, Kind] = {
    "upernet": "segment",
    "segformer": "segment",
    "mask_rcnn": "detect",
    "cascade_mask_rcnn": "detect",
    "retinanet": "detect",
}
# The form of the backbone that a head is put on.
FORMS: dict[str | None, Form] = {
    None: "classification",
    "upernet": "segmentation",
    "segformer": "segmentation",
    "mask_rcnn": "detection",
    "cascade_mask_rcnn": "detection",
    "retinanet": "one_stage",
}


def variants() -> dict[str, Any]:
    """Every backbone by name: those of the papers, then those of extensions."""
    registered = {name: config for family in extensions.families() for name, config in family.variants.items()}
    return VARIANTS | registered


def heads() -> dict[str, Kind]:
    """What can be put on a backbone, and the kind of task it makes: the papers' heads, then those of extensions."""
    registered: dict[str, Kind] = {head.name: head.kind for head in extensions.heads()}
    return HEADS | registered


def form_of(head: str | None) -> Form:
    """The form of the backbone that a head is put on."""
    return FORMS[head] if head in FORMS else next(one.form for one in extensions.heads() if one.name == head)


def model_names() -> tuple[str, ...]:
    """Every model by name: the backbones, which classify, then each of them with each head."""
    backbones = variants()
    return (*backbones, *(f"{name}_{head}" for head in heads() for name in backbones))


def unalias(model: str) -> str:
    """The name of a model that is asked for as in the official repository and in timm, `gc_vit_tiny` for example."""
    return f"gcvit_{model.removeprefix('gc_vit_')}" if model.startswith("gc_vit_") else model


def split_name(model: str) -> tuple[str, str | None]:
    """A model's backbone and head: `gpvit_l1_upernet` → (`gpvit_l1`, `upernet`), `gpvit_l1` → (`gpvit_l1`, None)."""
    # The longest first: `cascade_mask_rcnn` ends in `mask_rcnn`.
    for head in sorted(heads(), key=len, reverse=True):
        if model.endswith(f"_{head}"):
            return model.removesuffix(f"_{head}"), head
    return model, None


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What a paper or a release states of a variant, and what was counted here.

    Attributes:
        params: parameters counted with the published 1000-way head.
        published_params: the millions of parameters its authors print; None where they print none.
        gmacs: multiply-adds counted at the variant's own size, in 10⁹.
        published_gflops: the figure its authors print, multiply-adds too; None where they print none.
        top1: ImageNet-1K accuracy of the released weights, percent; None where none is printed.
        note: what a reader of the figures should know.
    """

    params: int
    published_params: float | None
    gmacs: float
    published_gflops: float | None
    top1: float | None
    note: str = ""


PUBLISHED: dict[str, Published] = {
    "gcvit_xxtiny": Published(params=11_995_428, published_params=12, gmacs=2.12, published_gflops=2.1, top1=79.9),
    "gcvit_xtiny": Published(params=19_981_294, published_params=20, gmacs=2.91, published_gflops=2.6, top1=82.0),
    "gcvit_tiny": Published(
        params=28_221_974,
        published_params=28,
        gmacs=4.76,
        published_gflops=4.7,
        top1=83.5,
        note="83.2 in the paper of 2022",
    ),
    "gcvit_tiny2": Published(params=34_535_654, published_params=34, gmacs=6.18, published_gflops=5.5, top1=83.7),
    "gcvit_small": Published(
        params=51_092_173,
        published_params=51,
        gmacs=8.53,
        published_gflops=8.5,
        top1=84.3,
        note="83.9 in the paper of 2022",
    ),
    "gcvit_small2": Published(params=68_615_197, published_params=68, gmacs=11.54, published_gflops=10.7, top1=84.8),
    "gcvit_base": Published(
        params=90_320_836,
        published_params=90,
        gmacs=14.82,
        published_gflops=14.8,
        top1=85.0,
        note="84.4 in the paper of 2022",
    ),
    "gcvit_large": Published(
        params=202_075_570,
        published_params=201,
        gmacs=32.55,
        published_gflops=32.6,
        top1=85.7,
        note="86.6 from ImageNet-21K",
    ),
    "gcvit_large_384": Published(
        params=202_860_610, published_params=201, gmacs=103.94, published_gflops=120.4, top1=87.4
    ),
    "gcvit_large_512": Published(
        params=203_795_362, published_params=None, gmacs=202.14, published_gflops=245.0, top1=None
    ),
    "gpvit_l1": Published(params=9_589_848, published_params=9.3, gmacs=6.10, published_gflops=None, top1=80.5),
    "gpvit_l2": Published(params=24_162_680, published_params=23.8, gmacs=15.65, published_gflops=None, top1=83.4),
    "gpvit_l3": Published(params=36_654_056, published_params=36.2, gmacs=23.44, published_gflops=None, top1=84.1),
    "gpvit_l4": Published(params=75_484_456, published_params=75.4, gmacs=48.15, published_gflops=None, top1=84.3),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """What `create_model` was asked for: enough to build the same module again.

    Attributes:
        model: a name of `list_models`.
        num_classes: outputs of the head.
        in_channels: channels of the images.
        image_size: (height, width) the windows were chosen for, in pixels; None is the variant's own.
        window: window side of each stage where it was chosen; None follows `image_size`.
        drop_path: drop-path rate where it was chosen; None is the variant's own.
        ablation: designs in place of GC ViT's own, words of `models.ablations`.
        multi_label: whether an image may have any number of a classifier's labels.
    """

    model: str
    num_classes: int = 1000
    in_channels: int = 3
    image_size: Size | None = None
    window: Window | None = None
    drop_path: float | None = None
    ablation: tuple[str, ...] = ()
    multi_label: bool = False

    def __post_init__(self) -> None:
        for name in ("num_classes", "in_channels"):
            object.__setattr__(self, name, _as_count(name, getattr(self, name)))
        if not isinstance(self.model, str):
            raise ValueError(f"expected the name of a model, got {self.model!r}; list_models() gives the names")
        if self.drop_path is not None and not isinstance(self.drop_path, int | float):
            raise ValueError(f"drop_path={self.drop_path!r} must be a number in [0, 1)")
        if self.multi_label and self.kind != "classify":
            raise ValueError(f"multi_label requires a classifier; {self.model} is not one")

    @property
    def backbone(self) -> str:
        """The backbone's name, a key of `VARIANTS`."""
        return split_name(self.model)[0]

    @property
    def head(self) -> str | None:
        """A key of `HEADS`; None for a classifier."""
        return split_name(self.model)[1]

    @property
    def kind(self) -> Kind:
        """The kind of task."""
        return "classify" if self.head is None else heads()[self.head]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and YAML."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        # Files of single-label models stay as earlier versions read them.
        return values if self.multi_label else {key: value for key, value in values.items() if key != "multi_label"}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelSpec":
        """The inverse of `to_dict`."""
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**fields)


def _as_count(name: str, value: Any) -> int:
    """A whole number from 1 up, also one of NumPy's."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
    number = index(value)
    if number < 1:
        features = "; create_backbone() gives features without a head" if name == "num_classes" else ""
        raise ValueError(f"{name}={number} must be at least 1{features}")
    return number


def as_size(image_size: int | tuple[int, int] | list[int]) -> Size:
    """Read an image size given as a side or as (height, width), in pixels.

    Raises:
        ValueError: a side is under 32 pixels, or it is not one or two whole numbers.
    """
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise ValueError(f"image_size={image_size} must be a side or (height, width) in whole pixels")
    if min(sides) < SMALLEST_IMAGE:
        raise ValueError(f"image_size={image_size} is too small; give {SMALLEST_IMAGE} pixels or more a side")
    return sides[0], sides[1]


def ratio_window(image_size: Size) -> Window:
    """Windows in the paper's proportion to the image's shorter side, rounded half up, at least 1."""
    side = min(image_size)
    first, second, third, fourth = (max(1, floor(side / part + 0.5)) for part in WINDOW_PARTS)
    return first, second, third, fourth


def choose_window(config: GCViTConfig, image_size: int | Size | None, window: Window | str | None) -> Window:
    """Windows of a GC ViT made for `image_size`.

    The variant's own from 224 pixels up (shorter side), the paper's proportion below; `window` chooses others:
    four sides, `"ratio"` for the proportion at any size, `"own"` for the variant's own at any size.

    Raises:
        ValueError: `window` is neither four whole numbers from 1 up nor one of the words, or `image_size` is invalid.
    """
    size = as_size(config.image_size if image_size is None else image_size)
    if isinstance(window, str):
        if window not in ("ratio", "own"):
            raise ValueError(
                f"window={window!r} is not known; give four sides such as (7, 7, 14, 7), or 'ratio' or 'own'"
            )
        return ratio_window(size) if window == "ratio" else config.window
    if window is not None:
        sides = tuple(window)
        if len(sides) != 4 or not all(isinstance(side, int) and side >= 1 for side in sides):
            raise ValueError(f"window={window} must be four whole numbers from 1 up, one for each stage")
        return sides
    return ratio_window(size) if min(size) < OWN_WINDOW_FROM else config.window
