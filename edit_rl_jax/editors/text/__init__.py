"""Text encoders of editors that read with no language model: T5 and CLIP."""
