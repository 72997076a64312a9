"""What is written to disk: run folders, checkpoints, weights and cached results; and hashes of tensors."""
