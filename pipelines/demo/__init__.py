"""Demo data: a subset of Fashion-MNIST in the repository, and synthetic audio-visual clips rendered on first use."""
