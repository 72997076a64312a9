"""FedLab beside its alternatives: the same work, measured in one run. See `make bench`."""
