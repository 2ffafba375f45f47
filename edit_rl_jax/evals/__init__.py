"""Benchmarks of judges and of editors, statistics, best of N."""
