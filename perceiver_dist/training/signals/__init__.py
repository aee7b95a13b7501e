"""Signals of a training: attention, norms and updates by part of the model, and whether it learns."""
