"""What server and clients send to each other: messages, instructions, compressed updates and exact sums."""
