"""The subsets of MMEB v1 and how they are grouped."""

from __future__ import annotations

_CLASSIFICATION = (
    ("ImageNet-1K", "N24News", "HatefulMemes", "VOC2007", "SUN397"),
    ("Place365", "ImageNet-A", "ImageNet-R", "ObjectNet", "Country211"),
)
_VQA = (
    ("OK-VQA", "A-OKVQA", "DocVQA", "InfographicsVQA", "ChartQA", "Visual7W"),
    ("ScienceQA", "VizWiz", "GQA", "TextVQA"),
)
_RETRIEVAL = (
    (
        *("VisDial", "CIRR", "VisualNews_t2i", "VisualNews_i2t"),
        *("MSCOCO_t2i", "MSCOCO_i2t", "NIGHTS", "WebQA"),
    ),
    ("FashionIQ", "Wiki-SS-NQ", "OVEN", "EDIS"),
)
_GROUNDING = (("MSCOCO",), ("Visual7W-Pointing", "RefCOCO", "RefCOCO-Matching"))
_IN, _OUT = (
    tuple(name for group in (_CLASSIFICATION, _VQA, _RETRIEVAL, _GROUNDING) for name in group[i])
    for i in (0, 1)
)
GROUPS: dict[str, tuple[str, ...]] = {
    "classification": sum(_CLASSIFICATION, ()),
    "vqa": sum(_VQA, ()),
    "retrieval": sum(_RETRIEVAL, ()),
    "grounding": sum(_GROUNDING, ()),
    "in_distribution": _IN,
    "out_of_distribution": _OUT,
    "all": _IN + _OUT,
}
"""Evaluation subsets by group; the in-distribution ones have training pairs."""

TRAIN_SUBSETS = tuple("ImageNet_1K" if name == "ImageNet-1K" else name for name in _IN)
"""Subsets with training pairs, as they are named there."""
