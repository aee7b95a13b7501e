"""Hyperparameter search: find the best Perceiver for given data and a given budget, with Ray Tune."""
