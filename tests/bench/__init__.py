"""The benchmark: the same work through mountkit, its peers and the plain disk, on one simulated endpoint.

`python -m tests.bench` from a checkout, as root (it drops the page cache); docs/benchmarks.md tells the method.
"""
