"""Benchmarks: one file per benchmark, a runner, and the statistics that every reported number goes through."""
