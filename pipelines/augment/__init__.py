"""Data augmentation of images and videos, and the random choices of each sample."""
