"""Decisions of a search: candidates, budgets, successive halving and populations."""
