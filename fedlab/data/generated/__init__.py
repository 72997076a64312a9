"""Generators of toy data."""
