"""The field's benchmarks: generate, judge, count, compare."""
