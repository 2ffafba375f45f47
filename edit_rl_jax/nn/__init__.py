"""Layers, attention, LoRA, weights in and out: everything that networks share. Knows no model."""
