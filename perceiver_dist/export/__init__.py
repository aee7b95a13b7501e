"""Export of trained models: as a folder, an ONNX file, a torch.export file, or an MLflow model."""
