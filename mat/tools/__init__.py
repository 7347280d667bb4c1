"""Tools that are run by hand: the benchmark, interruptions, the table of config keys."""
