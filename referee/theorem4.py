"""Theorem 4: its claims, which several files compute again."""

from referee import gradient_rank, memory, optimizers, trajectories
from referee.redone import together

CLAIMS, DIVERGES = together(gradient_rank, memory, optimizers, trajectories)
