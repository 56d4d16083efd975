"""Drawing: verdicts, figures and tables."""
