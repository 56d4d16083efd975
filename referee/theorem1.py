"""Theorem 1: its claims, which several files compute again."""

from referee import critical_points, minimisers
from referee.redone import together

CLAIMS, DIVERGES = together(critical_points, minimisers)
