"""Wire truth: numbers and structures of the specifications, each declared once."""
