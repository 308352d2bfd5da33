"""Kernels of our own, behind `globalvit.models.attention`."""
