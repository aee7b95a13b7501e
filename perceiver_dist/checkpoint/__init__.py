"""Checkpoints and run folders: file format, manifest, retention, and locating a trained model."""
