"""The methods, one folder per paper. A folder contains only what belongs to its paper."""
