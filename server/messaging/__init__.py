"""What the server sends to clients and what it makes of their replies."""
