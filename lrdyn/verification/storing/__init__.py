"""What is kept on disk: results, parts of a sweep, checkpoints, and the schema of a verdict."""
