"""What the MMDiT networks (FLUX.1-Kontext and its relatives) share: blocks, rotary positions, packing."""
