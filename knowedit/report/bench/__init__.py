"""The report of runs: tables and comparisons."""
