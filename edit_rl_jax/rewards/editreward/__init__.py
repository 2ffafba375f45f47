"""EditReward (arXiv 2509.26346): Gaussian heads on a VLM, one for each dimension, trained on preferences."""
