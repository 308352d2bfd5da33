"""Detectors: from the maps of a neck to boxes and masks, on torchvision's operators."""
