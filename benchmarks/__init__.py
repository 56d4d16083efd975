"""Ratios against rivals, both sides measured in one run: ``python -m benchmarks``."""
