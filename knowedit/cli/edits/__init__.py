"""Commands that edit, and that work on edits."""
