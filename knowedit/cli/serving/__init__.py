"""An edit's life after it was made, and what lies on the disk."""
