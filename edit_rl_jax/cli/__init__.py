"""Holds the entry point `edit-rl` and the flags of judges and editors that several scripts share."""
