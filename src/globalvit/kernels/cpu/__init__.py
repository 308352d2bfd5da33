"""Kernels in C for CPUs, from the wheel or compiled at first use."""
