"""Attention in windows and stripes for GPUs, in Triton: reads the projection and writes the result in place."""
