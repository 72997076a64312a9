"""One folder per paper. A folder holds that paper's ideas and nothing else."""
