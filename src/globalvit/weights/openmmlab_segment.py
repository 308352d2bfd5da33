"""The heads of segmenters in the style of OpenMMLab ↔ ours: a table of names."""

from globalvit.weights.names import Pair, nest

_CONV: list[Pair] = [("conv.weight", "conv.weight"), ("bn.{norm}", "norm.{norm}")]
_CLASSIFIER: list[Pair] = [("conv_seg.{part}", "classifier.{part}")]
_UPERNET: list[Pair] = [
    *nest("psp_modules.{n}.1.", "pyramid.levels.{n}.", _CONV),
    *nest("bottleneck.", "pyramid.merge.", _CONV),
    *nest("lateral_convs.{n}.", "laterals.{n}.", _CONV),
    *nest("fpn_convs.{n}.", "outputs.{n}.", _CONV),
    *nest("fpn_bottleneck.", "merge.", _CONV),
]
_SEGFORMER: list[Pair] = [
    *nest("convs.{n}.", "projections.{n}.", _CONV),
    *nest("fusion_conv.", "fusion.", _CONV),
]
PAIRS: list[Pair] = [
    *nest("decode_head.", "head.", [*_CLASSIFIER, *_UPERNET, *_SEGFORMER]),
    *nest("auxiliary_head.", "auxiliary_head.", [*_CLASSIFIER, *nest("convs.0.", "conv.", _CONV)]),
]
