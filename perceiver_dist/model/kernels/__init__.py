"""Triton kernels for attention to a grid; grid_kernels.py launches them."""
