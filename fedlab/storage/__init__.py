"""What lies on disk: run folders, checkpoints, weights, cached results, and hashes of them."""
