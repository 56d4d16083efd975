"""What the operating system sees: files replaced whole, signals, the terminal, memory."""
