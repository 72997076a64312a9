"""Several clients trained as one batch."""
