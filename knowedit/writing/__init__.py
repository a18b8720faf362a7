"""How text is written, before any tokenizer: scripts, where a subject is mentioned, what stands before a target."""
