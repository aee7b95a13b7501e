"""The Perceiver in plain torch: runs on a bare GPU box, imports neither Ray, DeepSpeed, MLflow nor `pipelines`.

Shape legend of the whole package: B batch, M tokens, N latents, C token channels, D latent width, H heads.
"""
