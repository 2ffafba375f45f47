"""Qwen2.5-VL: vision tower, decoder, positions, weights and adapters."""
