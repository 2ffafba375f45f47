"""Edit-R1's verifier (arXiv 2604.27505): a judge that reasons, gives a verdict on each principle, and a final score."""
