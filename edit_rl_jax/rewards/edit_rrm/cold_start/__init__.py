"""Training data for the verifier: principles, candidate replies, gold verdicts, and the best reply of each edit."""
