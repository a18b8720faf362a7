"""What commands share: options, facts, output, progress."""
