"""What people see of results: records and tables, and the look of all figures."""
