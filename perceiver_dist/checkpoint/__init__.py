"""Checkpoints and run folders: file format, manifest, retention, and finding a trained model."""
