"""Snapshots: the state of a machine as sections, guest memory, and both in files."""
