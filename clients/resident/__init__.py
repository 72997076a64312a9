"""A deployed node's resident worker, which works on every message in place of a new process for each."""
