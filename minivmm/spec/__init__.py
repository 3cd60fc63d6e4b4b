"""Wire truth: numbers and structures of the specifications, declared with construct."""
