"""The study of edits: efficacy, paraphrases, neighbours, generation, drift."""
