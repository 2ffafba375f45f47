"""Judges of edits: models here, servers elsewhere, the oracle; their cache and their files."""
