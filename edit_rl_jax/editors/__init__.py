"""Image editors: one folder each, behind the `Editor` interface of base.py."""
