"""Sharing what was trained: as a folder, an ONNX file, a torch.export file, or a model of MLflow."""
