"""Augmentation of batches on the device: mixing of images, masks of spectrograms."""
