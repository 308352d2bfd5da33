"""Implementations of the operations in `globalvit.models.ops`: in C for CPUs, in Triton for NVIDIA GPUs."""
