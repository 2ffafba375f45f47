"""Evaluates judges: pairs and scores of public benchmarks, and the built-in world."""
