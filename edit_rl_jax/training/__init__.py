"""Training: the session that every loop has, the supervised loop, its compiled step, checkpoints, metrics, reports."""
