"""Differential privacy: the part that clients do."""
