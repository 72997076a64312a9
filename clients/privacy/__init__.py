"""Privacy on the client's side."""
