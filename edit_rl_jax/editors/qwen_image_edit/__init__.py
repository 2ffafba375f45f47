"""Qwen-Image-Edit (the original, 2509 and 2511): so far its transformer."""
