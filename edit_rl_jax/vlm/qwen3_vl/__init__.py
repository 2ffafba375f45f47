"""Qwen3-VL (dense): configuration, vision tower with deepstack, weights; the decoder is shared (`vlm.text`)."""
