"""Guest memory: host mappings, the guest physical address space, and where everything lies."""
