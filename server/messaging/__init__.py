"""Messages from the server to the clients, and how the server reads their replies."""
