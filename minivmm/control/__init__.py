"""The QMP-compatible control socket, its commands, its client."""
