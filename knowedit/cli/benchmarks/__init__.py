"""Commands that measure: bench, merge, report."""
