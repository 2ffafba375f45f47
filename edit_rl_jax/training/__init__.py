"""Supervised training: configs, the run and its loop, the compiled step, checkpoints, metrics, reports."""
