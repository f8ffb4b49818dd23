"""Object stores behind one protocol (`api`); `s3` is the implementation, `retry` a decorator of it."""
