"""Serving the kernel: the keeper that owns the FUSE session, and the servers that answer it."""
