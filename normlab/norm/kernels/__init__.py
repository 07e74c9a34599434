"""Kernels of the operations in normlab.norm.ops, by device; torch operations serve where there is none."""
