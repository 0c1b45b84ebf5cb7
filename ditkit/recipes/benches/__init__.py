"""Benchmarks: each measures one part of the work on this machine and gives numbers that a file can hold."""
