"""Probes: simple classifiers on the features of a trained network."""
