"""Training: from an autoregressive checkpoint to a masked diffusion model, one plain loop on PyTorch."""
