"""Text as rows of token ids: what a model says by itself, the built-in facts, and what the user gives."""
