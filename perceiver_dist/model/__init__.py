"""The Perceiver in plain PyTorch. It imports neither Ray, DeepSpeed, MLflow nor `pipelines`.

Shape legend of the whole package: B batch, M tokens, N latents, C token channels, D latent width, H heads.
"""
