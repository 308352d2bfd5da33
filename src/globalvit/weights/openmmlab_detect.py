"""The parts of detectors beside GC ViT's and GPViT's blocks, in OpenMMLab's names and ours: adapter, neck and heads.

Tables of pairs only, as in `weights.names`; shapes are the same on either side. Detectors with several stages number
their box and mask heads, those with one do not.
"""

from globalvit.weights.names import Pair, nest

_ATTENTION: list[Pair] = [
    ("sampling_offsets.{part}", "offsets.{part}"),
    ("attention_weights.{part}", "weights.{part}"),
    ("value_proj.{part}", "value.{part}"),
    ("output_proj.{part}", "output.{part}"),
]
_EXCHANGE: list[Pair] = [
    ("query_norm.{part}", "norm_query.{part}"),
    ("feat_norm.{part}", "norm_source.{part}"),
    *nest("attn.", "attention.", _ATTENTION),
]
_INJECTOR: list[Pair] = [("gamma", "gamma"), *_EXCHANGE]
_EXTRACTOR: list[Pair] = [
    *_EXCHANGE,
    ("ffn_norm.{part}", "norm_mlp.{part}"),
    ("ffn.fc{n}.{part}", "mlp.fc{n}.{part}"),
    ("ffn.dwconv.dwconv.{part}", "mlp.depthwise.{part}"),
]
_INTERACTION: list[Pair] = [
    *nest("injector.", "injector.", _INJECTOR),
    *nest("extractor.", "extractors.0.", _EXTRACTOR),
    *nest("extra_extractors.0.", "extractors.1.", _EXTRACTOR),
    *nest("extra_extractors.1.", "extractors.2.", _EXTRACTOR),
]
# Convolution, norm and activation in turn.
_PRIOR: list[Pair] = [
    *((f"stem.{3 * index}.weight", f"stem.{index}.conv.weight") for index in range(3)),
    *((f"stem.{3 * index + 1}.{{norm}}", f"stem.{index}.norm.{{norm}}") for index in range(3)),
    *((f"conv{index + 2}.0.weight", f"downs.{index}.conv.weight") for index in range(3)),
    *((f"conv{index + 2}.1.{{norm}}", f"downs.{index}.norm.{{norm}}") for index in range(3)),
    *((f"fc{level}.{{part}}", f"projections.{2 * 2**level}.{{part}}") for level in range(1, 5)),
]
ADAPTER: list[Pair] = [
    ("level_embed", "adapter.level_embedding"),
    *nest("spm.", "adapter.prior.", _PRIOR),
    *nest("interactions.{n}.", "adapter.interactions.{n}.", _INTERACTION),
    ("up.{part}", "adapter.upsample.{part}"),
    *((f"ad_norm{level}.{{norm}}", f"adapter.norms.{2 * 2**level}.{{norm}}") for level in range(1, 5)),
]

_CONV_NORM: list[Pair] = [("conv.{part}", "conv.{part}"), ("bn.{norm}", "norm.{norm}")]
_NECK: list[Pair] = [
    *nest("lateral_convs.{n}.", "laterals.{n}.", _CONV_NORM),
    *nest("fpn_convs.{n}.", "outputs.{n}.", _CONV_NORM),
]
_RPN: list[Pair] = [
    ("rpn_conv.{part}", "conv.{part}"),
    ("rpn_cls.{part}", "logits.{part}"),
    ("rpn_reg.{part}", "deltas.{part}"),
]
_BOX_HEAD: list[Pair] = [
    *nest("shared_convs.{n}.", "convs.{n}.", _CONV_NORM),
    ("shared_fcs.{n}.{part}", "fcs.{n}.{part}"),
    ("fc_cls.{part}", "logits.{part}"),
    ("fc_reg.{part}", "deltas.{part}"),
]
_MASK_HEAD: list[Pair] = [
    ("convs.{n}.conv.{part}", "convs.{n}.{part}"),
    ("upsample.{part}", "upsample.{part}"),
    ("conv_logits.{part}", "logits.{part}"),
]
_DENSE: list[Pair] = [
    ("cls_convs.{n}.conv.{part}", "class_convs.{n}.{part}"),
    ("reg_convs.{n}.conv.{part}", "box_convs.{n}.{part}"),
    ("retina_cls.{part}", "logits.{part}"),
    ("retina_reg.{part}", "deltas.{part}"),
]
PARTS: list[Pair] = [
    *nest("neck.", "neck.", _NECK),
    *nest("rpn_head.", "rpn.", _RPN),
    *nest("roi_head.bbox_head.", "roi.box_head.", _BOX_HEAD),
    *nest("roi_head.bbox_head.{n}.", "roi.box_heads.{n}.", _BOX_HEAD),
    *nest("roi_head.mask_head.", "roi.mask_head.", _MASK_HEAD),
    *nest("roi_head.mask_head.{n}.", "roi.mask_heads.{n}.", _MASK_HEAD),
    *nest("bbox_head.", "dense.", _DENSE),
]
