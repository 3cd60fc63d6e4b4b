"""Virtqueues: descriptor chains and the rings that carry them."""
