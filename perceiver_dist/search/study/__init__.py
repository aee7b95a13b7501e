"""What a search is and what it has found: options, search space, objective and record."""
