"""What located neurons do, and how rankings of them compare."""
