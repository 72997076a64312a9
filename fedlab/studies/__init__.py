"""Many runs: sweeps, comparisons and acceptance experiments."""
