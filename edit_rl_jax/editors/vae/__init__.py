"""Autoencoders of editors: images to latents and back, whole or in tiles."""
