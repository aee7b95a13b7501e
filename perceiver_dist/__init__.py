"""A training system for the Perceiver (Jaegle et al. 2021): model, training, tracking, configuration."""
