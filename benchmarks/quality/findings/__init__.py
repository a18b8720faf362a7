"""What the analyses of recall show of the default model: a study whose records are sections, and docs/findings.md."""
