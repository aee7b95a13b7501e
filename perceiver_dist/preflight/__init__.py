"""What can be known before a training: its cost, and how far a linear model gets."""
