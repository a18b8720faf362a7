"""Runs of studies: folders that survive being killed, engines, and trackers."""
