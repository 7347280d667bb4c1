"""Tools that are run by hand: the benchmark, growth, interruptions."""
