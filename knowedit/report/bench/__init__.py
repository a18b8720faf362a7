"""The report of runs: tables, figures and comparisons."""
