"""Live views of a running VM, as clients of its sockets: for a browser, and for a terminal."""
