"""Checks before a training: its cost, and the accuracy of a linear baseline."""
