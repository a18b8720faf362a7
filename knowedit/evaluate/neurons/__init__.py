"""The study of located neurons: suppression and amplification."""
