"""The dashboard of `knowedit ui`: one model, one fact from top to bottom, and the edits of each tab."""
