"""Mounts that stay: units of systemd for the mounts of mountkit.yaml, and the helpers mount(8) calls."""
