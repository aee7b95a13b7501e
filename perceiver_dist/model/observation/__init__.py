"""Attention maps and statistics of a forward pass."""
