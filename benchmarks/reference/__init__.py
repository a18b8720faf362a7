"""Plain loops, as one would write them first: what the benchmarks run against and the tests compare with."""
