"""A report of results: one HTML file that needs no other, no script and no network."""
