"""Speed and quality runs, beside the field's own algorithms, with the results that they gave."""
