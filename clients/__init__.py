"""The client side: Flower's ClientApp, the local trainer and a client's lasting state."""
