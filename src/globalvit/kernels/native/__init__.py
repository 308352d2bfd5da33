"""Attention for CPUs in C, compiled for the machine at hand when it is first used."""
