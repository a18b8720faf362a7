"""What results look like: `figures`, `page` (one fact as an HTML page), `bench` (tables over benchmark runs)."""
