"""One module for each contender; its `main` gets the work and the arguments that follow it."""
