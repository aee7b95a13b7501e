"""Augmentation of batches on the device: mixing of images, hidden tokens, what a step leaves out of the model."""
