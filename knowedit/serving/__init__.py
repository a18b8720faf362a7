"""An edit's life after it was made: its card, its checks, its log, and the files that servers load."""
