"""Decoding: a canvas, a denoiser, a policy, a stop rule, and the one loop that joins them."""
