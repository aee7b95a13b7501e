"""Decisions of a search: candidates, budgets, early stopping by successive halving, and population based training."""
