"""Benchmarks: ratios of one run against peers, never asserted by a test.

Each module prints a table and, as its last line, one JSON object: `python -m bench.NAME`.
"""
