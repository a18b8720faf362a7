"""How good: edits, neurons, rankings, findings."""
