"""Boxes, masks, legends and contact sheets drawn over images."""
