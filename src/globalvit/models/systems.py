"""The segmentation and detection systems of the papers: what is counted and what is printed of them. No torch here.

GC ViT: arXiv 2206.09959, tables 2 and 3. GPViT: arXiv 2212.06795, tables 3 to 5. Segmenters are scored on ADE20K's
validation images (150 classes), detectors on COCO val2017 (80 classes).
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """What a paper states of a backbone with a head, and what was counted here.

    Attributes:
        params: parameters counted with the published number of classes.
        published_params: the millions of parameters its authors print.
        miou: percent.
        ap_box: by schedule, percent.
        ap_mask: by schedule, percent; empty for detectors of boxes.
    """

    params: int
    published_params: int
    miou: float | None = None
    ap_box: tuple[tuple[str, float], ...] = ()
    ap_mask: tuple[tuple[str, float], ...] = ()


def _segmenter(params: int, published_params: int, miou: float) -> System:
    return System(params=params, published_params=published_params, miou=miou)


def _detector(params: int, published_params: int, box: dict[str, float], mask: dict[str, float]) -> System:
    return System(
        params=params, published_params=published_params, ap_box=tuple(box.items()), ap_mask=tuple(mask.items())
    )


SYSTEMS: dict[str, System] = {
    "gpvit_l1_upernet": _segmenter(37_674_532, 37, 49.1),
    "gpvit_l2_upernet": _segmenter(53_426_784, 53, 50.2),
    "gpvit_l3_upernet": _segmenter(66_838_476, 66, 51.7),
    "gpvit_l4_upernet": _segmenter(107_493_260, 107, 52.5),
    "gpvit_l1_segformer": _segmenter(9_851_278, 9, 46.9),
    "gpvit_l2_segformer": _segmenter(24_353_226, 24, 49.2),
    "gpvit_l3_segformer": _segmenter(36_969_270, 36, 50.8),
    "gpvit_l4_segformer": _segmenter(75_805_430, 76, 51.3),
    "gcvit_tiny_upernet": _segmenter(58_017_498, 58, 47.0),
    "gcvit_small_upernet": _segmenter(82_745_681, 84, 48.3),
    "gcvit_base_upernet": _segmenter(123_832_328, 125, 49.2),
    "gpvit_l1_mask_rcnn": _detector(33_518_676, 33, {"1x": 48.1, "3x": 50.2}, {"1x": 42.7, "3x": 44.3}),
    "gpvit_l2_mask_rcnn": _detector(50_308_778, 50, {"1x": 49.9, "3x": 51.4}, {"1x": 43.9, "3x": 45.1}),
    "gpvit_l3_mask_rcnn": _detector(64_870_808, 64, {"1x": 50.4, "3x": 51.6}, {"1x": 44.4, "3x": 45.2}),
    "gpvit_l4_mask_rcnn": _detector(109_585_720, 109, {"1x": 51.0, "3x": 52.1}, {"1x": 45.0, "3x": 45.7}),
    "gpvit_l1_retinanet": _detector(21_459_448, 21, {"1x": 45.8, "3x": 48.1}, {}),
    "gpvit_l2_retinanet": _detector(37_908_990, 37, {"1x": 48.0, "3x": 49.0}, {}),
    "gpvit_l3_retinanet": _detector(52_181_724, 52, {"1x": 48.3, "3x": 49.4}, {}),
    "gpvit_l4_retinanet": _detector(96_023_420, 96, {"1x": 48.7, "3x": 49.8}, {}),
    "gcvit_tiny_mask_rcnn": _detector(48_293_934, 48, {"3x": 47.9}, {"3x": 43.2}),
    "gcvit_tiny_cascade_mask_rcnn": _detector(86_129_136, 85, {"3x": 51.6}, {"3x": 44.6}),
    "gcvit_small_cascade_mask_rcnn": _detector(109_083_183, 108, {"3x": 52.4}, {"3x": 45.4}),
    "gcvit_base_cascade_mask_rcnn": _detector(148_395_694, 146, {"3x": 52.9}, {"3x": 45.8}),
}
