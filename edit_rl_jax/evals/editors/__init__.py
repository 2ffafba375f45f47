"""Evaluates editors: the built-in world with its oracle."""
