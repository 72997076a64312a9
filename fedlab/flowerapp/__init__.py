"""Runs a Flower app, with its own ServerApp and ClientApp, on FedLab's engines."""
