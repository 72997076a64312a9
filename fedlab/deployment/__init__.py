"""Runs on real machines."""
