"""The quickstart's demo: mountkit's story on a bucket of its own, with an S3 server of its own."""
