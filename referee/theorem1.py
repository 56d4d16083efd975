"""Theorem 1: its claims, which several files compute again."""

from referee import balanced_minimum, critical_points, minimisers
from referee.redone import together

CLAIMS, DIVERGES = together(critical_points, balanced_minimum, minimisers)
