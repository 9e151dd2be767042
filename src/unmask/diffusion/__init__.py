"""The mathematics of masked diffusion: pure functions on tensors, without models, tokenizers or files."""
