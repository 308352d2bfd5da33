"""Our models in timm: `import globalvit.timm_plugin`, then `timm.create_model("globalvit_gcvit_tiny2", ...)`.

timm's own arguments work: `pretrained` (also with a tag, `globalvit_gcvit_tiny.timm_in1k`, or a file in
`pretrained_cfg_overlay`), `num_classes`, `in_chans`, `img_size` (chooses windows, restricts nothing), `drop_rate`,
`drop_path_rate`, `device`, `dtype`, `global_pool`, `features_only` with `out_indices`. The names in a state dict are
those of our tasks, so that a checkpoint of either opens in the other.

Legend: `B` images · `H W` grid · `C` channels · `K` classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from globalvit.build import create_model, load_weights
from globalvit.heads.classify import ClassifyHead
from globalvit.models.backbone import Backbone
from globalvit.models.gcvit import GCViT, GlobalQuery, WindowAttention
from globalvit.models.gpvit import GPViT
from globalvit.models.variants import GPVIT, VARIANTS, GCViTConfig, Window, as_size, choose_window
from globalvit.weights.adapt import adapt, resize_table
from globalvit.weights.catalog import RECORDS, WeightRecord, find, records
from globalvit.weights.load import download, read_weights, require_finite, require_match

PREFIX = "globalvit_"
SOURCES = ("file", "url", "hf_hub_id", "state_dict")
POOLS = ("avg", "max", "")


class TimmHead(nn.Module):
    """Pool, dropout, linear layer; without classes what comes before the linear layer."""

    def __init__(self, pool: nn.Module, channels: int, num_classes: int, global_pool: str, drop_rate: float) -> None:
        super().__init__()
        self.channels = channels
        self.pool = pool
        self.drop = nn.Dropout(drop_rate)
        self.reset(num_classes, global_pool)

    def reset(self, num_classes: int, global_pool: str, **kept: Any) -> None:
        """Put a fresh linear layer for `num_classes` (0: none) behind the pooling `global_pool`.

        Args:
            num_classes: outputs.
            global_pool: one of `POOLS`.
            **kept: device and dtype of the linear layer.

        Raises:
            ValueError: the pooling is not known, or there is none and yet there are classes.
        """
        if global_pool not in POOLS:
            raise ValueError(f"global_pool={global_pool!r} is not one of {', '.join(map(repr, POOLS))}")
        if num_classes and not global_pool:
            raise ValueError(f"global_pool='' leaves a map; num_classes={num_classes} requires global_pool='avg'")
        self.global_pool = global_pool
        self.linear = nn.Linear(self.channels, num_classes, **kept) if num_classes else nn.Identity()
        if isinstance(self.linear, nn.Linear):
            nn.init.trunc_normal_(self.linear.weight, std=0.02)
            nn.init.zeros_(self.linear.bias)

    def forward(self, x_BCHW: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C, H, W) → (B, K), or (B, C) without classes, or (B, C, H, W) without pooling."""
        x = self.drop(self._pooled(x_BCHW))
        return x if pre_logits else self.linear(x)

    def _pooled(self, x_BCHW: Tensor) -> Tensor:
        if self.global_pool == "max":
            return x_BCHW.amax((2, 3))
        return self.pool(x_BCHW) if self.global_pool else x_BCHW


class TimmModel(nn.Module):
    """A classifier of ours with the methods that timm's users and tools call.

    `global_pool="avg"` is the pooling of the paper, `"max"` the maximum, `""` none. Features are the backbone's maps,
    of which the last one has passed the final LN.
    """

    def __init__(
        self,
        model: str,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] | None = None,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        task = create_model(model, in_channels=in_chans, image_size=img_size, drop_path=drop_path_rate)
        assert isinstance(task.head, ClassifyHead)
        self.spec = task.spec
        self.backbone = task.backbone
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.backbone.channels[-1]
        self.head = TimmHead(task.head.pool, self.num_features, num_classes, global_pool, drop_rate)
        self.feature_info = [
            {"num_chs": channels, "reduction": stride, "module": module}
            for module, channels, stride in zip(
                _modules(self.backbone), self.backbone.channels, self.backbone.strides, strict=True
            )
        ]
        self.to(device=device, dtype=dtype)

    @property
    def global_pool(self) -> str:
        """How the last map is pooled."""
        return self.head.global_pool

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) images → the last map, normed, (B, C, H/stride, W/stride)."""
        return self.backbone(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map → logits, or what they are computed from."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, K)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps of `indices` (of all for None, of the last n for n), with the last map before them unless left out.

        `norm` and `stop_early` change nothing: the final LN belongs to the last map, and `features_only` drops the
        stages that are not asked for.

        Raises:
            ValueError: `output_fmt` is neither NCHW nor NHWC, or an index is out of range.
        """
        del norm, stop_early
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt={output_fmt!r} is not known; give 'NCHW' or 'NHWC'")
        maps = self.backbone(x)
        taken = [maps[index] for index in _counted(indices, len(maps))]
        chosen = taken if output_fmt == "NCHW" else [x_BCHW.permute(0, 2, 3, 1) for x_BCHW in taken]
        return chosen if intermediates_only else (maps[-1], chosen)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the head and the stages behind the last index; return the indices counted from 0.

        Raises:
            ValueError: an index is out of range.
        """
        del prune_norm
        taken = _counted(indices, len(self.feature_info))
        if prune_head:
            self.reset_classifier(0, "")
        kept = max(taken) + 1
        if isinstance(self.backbone, GCViT) and kept < len(self.backbone.stages):
            self.backbone.stages = self.backbone.stages[:kept]
            self.backbone.stages[-1].register_module("downsample", None)
            self.backbone.register_module("norm", nn.Identity())
        return taken

    def get_classifier(self) -> nn.Module:
        """The linear layer."""
        return self.head.linear

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh linear layer for another number of classes; 0 removes it. Device and dtype stay."""
        self.num_classes = num_classes
        like = next(self.backbone.parameters())
        pool = self.global_pool if global_pool is None else global_pool
        self.head.reset(num_classes, pool, device=like.device, dtype=like.dtype)

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, window_size: Sequence[int] | None = None
    ) -> None:
        """Choose the attention windows for another image size; tables of relative positions are resized.

        Only GC ViT has such windows. Neither model restricts the size of the images.

        Args:
            img_size: side or (height, width) in pixels.
            window_size: tokens per side of the windows in the four stages, instead of those for `img_size`.

        Raises:
            ValueError: a value is invalid.
        """
        backbone, size = self.backbone, None if img_size is None else as_size(img_size)
        if isinstance(backbone, GCViT) and (size or window_size):
            chosen = choose_window(
                cast(GCViTConfig, VARIANTS[self.spec.backbone]), size, cast(Window | None, window_size)
            )
            for stage, side in zip(backbone.stages, chosen, strict=False):
                _set_window(stage, side)
            backbone.config = replace(backbone.config, window=chosen)
        elif window_size is not None:
            raise ValueError(f"window_size={window_size!r} chooses the windows of GC ViT; GPViT has stripes instead")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them."""
        self.backbone.set_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Parameters with two axes that weight decay should spare."""
        return {f"backbone.{name}" for name in self.backbone.no_decay_names()}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """A parameter's name → its depth, for layer decay: the stem, every block, the head."""
        del coarse
        backbone = self.backbone

        def depth(name: str) -> int:
            is_inside = name.startswith("backbone.")
            return backbone.depth_of(name.removeprefix("backbone.")) if is_inside else backbone.num_depths

        return depth

    def load_pretrained(self, path: str | Path) -> None:
        """Load a weight file in any form that we read; timm calls this for `pretrained=True`."""
        load_weights(self, path)


def _counted(indices: int | Sequence[int] | None, maps: int) -> list[int]:
    """Indices from 0 of the maps meant: all for None, the last n for n, else those given, from the end if negative."""
    if indices is None:
        return list(range(maps))
    given = range(-indices, 0) if isinstance(indices, int) else indices
    if not given or not all(-maps <= index < maps for index in given):
        raise ValueError(f"out_indices={indices} is out of range: there are {maps} maps, 0 to {maps - 1}")
    return [index % maps for index in given]


def _set_window(stage: nn.Module, side: int) -> None:
    """Give a stage of GC ViT windows of `side` tokens per side."""
    for module in stage.modules():
        if isinstance(module, GlobalQuery | WindowAttention):
            module.window = side
        if isinstance(module, WindowAttention) and len(module.bias_table) != (2 * side - 1) ** 2:
            table = module.bias_table
            resized = resize_table(table.detach(), (2 * side - 1) ** 2)
            module.bias_table = nn.Parameter(resized, requires_grad=table.requires_grad)


def _modules(backbone: Backbone) -> list[str]:
    """The module that each map comes from, in timm's way of naming."""
    if isinstance(backbone, GCViT):
        return [f"backbone.stages.{index}" for index in range(len(backbone.stages))]
    assert isinstance(backbone, GPViT)
    return [f"backbone.blocks.{index}" for index in backbone.config.outputs]


def _cfg(record: WeightRecord) -> dict[str, Any]:
    """What timm knows of a weight file."""
    given, is_plain = record.preprocessing, record.model in GPVIT
    repo, file = record.repo or (None, None)
    return {
        "url": None if repo else record.address,
        "hf_hub_id": repo,
        "hf_hub_filename": file,
        "custom_load": True,
        "input_size": (len(given.mean), *given.image_size),
        "crop_pct": given.crop_ratio,
        "crop_mode": given.crop_mode,
        "interpolation": given.interpolation,
        "mean": given.mean,
        "std": given.std,
        "num_classes": record.num_classes,
        "pool_size": tuple(side // (8 if is_plain else 32) for side in given.image_size),
        "first_conv": "backbone.stem.convs.0.conv" if is_plain else "backbone.stem.conv",
        "classifier": "head.linear",
        "license": record.license,
    }


def _fit(state: Mapping[str, Any], model: TimmModel) -> dict[str, Tensor]:
    """A state dict in any form that we read, as one that fits the model; timm calls this for `state_dict`s."""
    own = model.state_dict()
    weights = read_weights(state)
    adapted = adapt(weights.state, own)
    require_match(adapted.state, own, source=weights.source, model=model.spec.model, fresh=adapted.fresh)
    require_finite(adapted.state, weights.source)
    return own | adapted.state


def _build(model: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    overlay = {"custom_load": True} | (kwargs.pop("pretrained_cfg_overlay", None) or {})
    cfg = kwargs.get("pretrained_cfg")
    if pretrained and (cfg is None or isinstance(cfg, str)) and not any(overlay.get(source) for source in SOURCES):
        record = find(model, cfg) if cfg else records(model)[0]
        # Our own download knows copies put in place by hand, and says where to put them.
        overlay["file"] = str(download(record, cache_dir=kwargs.get("cache_dir")))
    return build_model_with_cfg(
        partial(TimmModel, model),
        PREFIX + model,
        pretrained,
        pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=_fit,
        feature_cfg={"out_indices": (0,) if model in GPVIT else (0, 1, 2, 3), "feature_cls": "getter"},
        **kwargs,
    )


def _register(model: str) -> None:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _build(model, pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = PREFIX + model
    globals()[PREFIX + model] = register_model(entrypoint)


# timm looks for this name in the module of what it registers.
default_cfgs = generate_default_cfgs({f"{PREFIX}{record.model}.{record.weights}": _cfg(record) for record in RECORDS})
for _model in dict.fromkeys(record.model for record in RECORDS):
    _register(_model)
