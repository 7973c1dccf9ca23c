"""Latents in the place of pixels: the autoencoder (codec), and the moments of a training set (moments)."""
