"""The study rank_before_training: nothing of it is computed again."""

NOT_REDONE = "a study, no theorem: what it trains is not trained again"
"""Why: it stands in the table beside each of its claims."""
