"""Qwen-Image-Edit, the original, 2509 and 2511: Qwen2.5-VL that sees the images, and Qwen-Image."""
