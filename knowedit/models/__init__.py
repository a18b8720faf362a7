"""Models: loading them, and the one canonical view of them that everything else works on."""
