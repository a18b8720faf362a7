"""What results look like: `page` (one fact as an HTML page), `bench` (tables and figures of benchmark runs)."""
