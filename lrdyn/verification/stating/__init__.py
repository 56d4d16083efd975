"""What an author of a theorem opens: flags, cases, fields, forms, claims, and its source."""
