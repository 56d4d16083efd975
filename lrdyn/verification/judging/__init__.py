"""From saved arrays to a verdict: outcomes, rounding, judgement, and the verdict in words."""
