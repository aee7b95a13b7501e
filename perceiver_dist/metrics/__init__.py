"""Evaluation metrics: running totals, modality subsets, and the evaluation loop of a rank."""
