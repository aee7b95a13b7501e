"""Inference with trained models: load, predict, evaluate, plot attention."""
