"""Data augmentation of images and clips, and the random numbers it is drawn from."""
