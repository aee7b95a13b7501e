"""Definition and results of a search: options, search space, objective and record."""
