"""Step1X-Edit v1.0 and v1.1: Qwen2.5-VL that sees the image, a connector, FLUX's transformer and autoencoder."""
