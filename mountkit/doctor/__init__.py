"""Doctor: what of this machine and of a source would keep a mount from working, a line each, with the way out."""
