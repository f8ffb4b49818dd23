"""The mover: the only process that talks to the bucket, and the only writer of catalog and cache."""
