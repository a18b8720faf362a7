"""How good: edits, settings, findings."""
