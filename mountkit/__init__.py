"""mountkit mounts buckets as directories and runs training containers on them."""

__version__ = "0.1.0"
