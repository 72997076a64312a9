"""Which clients take part in a round, and how long the round takes on the virtual clock."""
