"""What makes clients differ: how samples are divided, and how that changes over rounds."""
