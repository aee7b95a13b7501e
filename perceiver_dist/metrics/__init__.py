"""Evaluation: running totals of metrics, modality subsets, and the evaluation loop of a rank."""
