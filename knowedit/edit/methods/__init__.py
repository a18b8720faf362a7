"""Methods that make edits, a file each, and the table that knows them all."""
