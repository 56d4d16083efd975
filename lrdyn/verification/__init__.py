"""Running, storing and judging: from settings to a verdict."""
