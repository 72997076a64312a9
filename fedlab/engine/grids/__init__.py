"""FedLab's own implementations of Flower's Grid, through which a server reaches simulated clients."""
