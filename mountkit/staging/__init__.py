"""Output files that are not yet in the bucket: their bytes, their names, and what has to be done for them."""
