"""Compiles every kind of job for a machine that is not there: what it takes of memory, FLOPs, links and time."""
