"""What the server and the clients say to each other: messages, instructions, compression and exact sums."""
