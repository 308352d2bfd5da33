"""A third family of networks, a head and a data format for globalvit, each as small as it can be."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from globalvit.data.detection import registry
from globalvit.data.detection.coco_json import Labels, read_labels
from globalvit.data.detection.coco_plausible import COCO_WORDS
from globalvit.data.detection.formats import Annotated
from globalvit.extensions import Family, Head, HeadEntries, register_family, register_head
from globalvit.heads.dense import DenseHead, resize_like
from globalvit.models.attention_maps import WindowMaps
from globalvit.models.backbone import AttentionView, Backbone
from globalvit.models.variants import ModelSpec
from globalvit.tasks.segment import Segmenter
from globalvit.tasks.task import Preprocessing

# -- the family: a config, a backbone, and its registration


@dataclass(frozen=True, kw_only=True)
class ToyNetConfig:
    """A ToyNet: four convolutional stages, of which the last ends in a block of attention."""

    width: int
    heads: int = 2
    image_size: int = 64
    in_channels: int = 3
    drop_path: float = 0.0


class AttentionBlock(nn.Module):
    """Every token attends to every other: (B, H, W, C) → (B, H, W, C)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        q_BhNd, k_BhNd, v_BhNd = self._heads_of(x_BHWC).unbind(2)
        out_BhNd = F.scaled_dot_product_attention(q_BhNd, k_BhNd, v_BhNd)
        return x_BHWC + self.proj(out_BhNd.transpose(1, 2).reshape(x_BHWC.shape))

    def attention_maps(self, x_BHWC: Tensor) -> WindowMaps:
        """What `globalvit explain` draws: the whole grid is one window."""
        query, key, _ = self._heads_of(x_BHWC).unsqueeze(1).unbind(3)
        rows, columns = x_BHWC.shape[1:3]
        grid = (rows, columns)
        return WindowMaps(query=query, key=key, bias=None, rows=rows, columns=columns, grid=grid, size=grid)

    def _heads_of(self, x_BHWC: Tensor) -> Tensor:
        """Queries, keys and values, (B, h, 3, N, d)."""
        return self.qkv(self.norm(x_BHWC)).flatten(1, 2).unflatten(-1, (3, self.heads, -1)).permute(0, 3, 2, 1, 4)


class ToyNet(Backbone):
    """Four maps of strides 4, 8, 16 and 32."""

    strides = (4, 8, 16, 32)

    def __init__(self, config: ToyNetConfig) -> None:
        super().__init__()
        self.in_channels, self.heads = config.in_channels, config.heads
        self.channels = tuple(config.width * 2**stage for stage in range(4))
        inputs = (config.in_channels, *self.channels)
        self.stages = nn.ModuleList(
            nn.Conv2d(inputs[stage], inputs[stage + 1], 7 if stage == 0 else 3, 4 if stage == 0 else 2, padding)
            for stage, padding in enumerate((3, 1, 1, 1))
        )
        self.block = AttentionBlock(self.channels[-1], config.heads)

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        self.check(images_BCHW)
        maps, x = [], images_BCHW
        for stage in self.stages:
            x = F.gelu(stage(x))
            maps.append(x)
        maps[-1] = self.run_block(self.block, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return maps

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)

    def block_modules(self) -> list[nn.Module]:
        return [self.block]

    def no_decay_names(self) -> set[str]:
        return set()

    @property
    def num_depths(self) -> int:
        return 5

    def depth_of(self, name: str) -> int:
        return int(name.split(".")[1]) if name.startswith("stages.") else 4

    def attention_views(self) -> list[AttentionView]:
        return [
            AttentionView(kind="local", block=0, heads=self.heads, stride=32),
            AttentionView(kind="rollout", stride=32),
            AttentionView(kind="grad_cam", block=0, stride=32),
        ]


register_family(
    Family(
        name="toynet",
        variants={"toynet_small": ToyNetConfig(width=16), "toynet_large": ToyNetConfig(width=32, heads=4)},
        build=lambda config, _: ToyNet(config),
        stem="stages.0.weight",
    )
)

# -- the head: one more model for every backbone, `toynet_small_merge` and `gcvit_tiny_merge` alike


class MergeHead(DenseHead):
    """All maps, brought to the finest one's grid and merged by one convolution."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        super().__init__(channels, strides, channels[0], num_classes)
        self.merge = nn.Conv2d(sum(channels), channels[0], 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        merged = self.merge(torch.cat([resize_like(one, maps[0]) for one in maps], 1))
        return self.classify(F.relu(merged))


def build_merge(
    spec: ModelSpec, backbone: Backbone, preprocessing: Preprocessing, classes: tuple[str, ...] | None
) -> Segmenter:
    """A segmenter with fresh weights."""
    head = MergeHead(backbone.channels, backbone.strides, spec.num_classes)
    head.init_weights()
    return Segmenter(spec, backbone, head, preprocessing, classes)


register_head(
    Head(
        name="merge",
        kind="segment",
        form="segmentation",
        build=build_merge,
        entries=HeadEntries(
            mark="head.merge.weight", outputs="head.classifier.weight", class_wise=r"head\.classifier\."
        ),
    )
)

# -- the data format: DATA_DIR/SPLIT.objects with lines `image left top width height class`, images in DATA_DIR/images


class ObjectLists:
    """Boxes in text files, one line per object."""

    name = "object_lists"

    def matches(self, folder: Path) -> bool:
        return any(folder.glob("*.objects"))

    def describe(self, folder: Path) -> str:
        return f"lists of objects, {', '.join(f'{split}.objects' for split in self.splits(folder))}"

    def splits(self, folder: Path) -> Sequence[str]:
        return sorted(path.stem for path in folder.glob("*.objects"))

    def open(
        self, folder: Path, split: str, classes: Sequence[str] | None = None, *, crowd_as_instances: bool = False
    ) -> Annotated:
        path = folder / f"{split}.objects"
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        labels = Labels(classes or sorted({row[5] for row in rows}))
        for name in dict.fromkeys(row[0] for row in rows):
            with Image.open(folder / "images" / name) as image:
                labels.add_image(f"images/{name}", (image.height, image.width), str(path))
            for line, row in enumerate(rows, 1):
                if row[0] == name:
                    box = [float(value) for value in row[1:5]]
                    labels.add_object(f"line {line}", {"category_id": labels.classes.index(row[5]), "bbox": box})
        table = read_labels(path, labels, COCO_WORDS, crowd_as_instances=crowd_as_instances)
        return Annotated(table, lambda: folder)


registry.register(ObjectLists())
