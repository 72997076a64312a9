"""The server side: Flower's ServerApp, the round loop, strategies, sampling and evaluation."""
