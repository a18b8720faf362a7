"""The page of `knowedit explain`: one fact, one file."""
