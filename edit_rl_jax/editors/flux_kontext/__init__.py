"""FLUX.1-Kontext: the editor of Black Forest Labs, by T5 and CLIP, FLUX.1's autoencoder and an MMDiT."""
