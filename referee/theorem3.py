"""Theorem 3 and its examples: its claims, which several files compute again."""

from referee import dropblock, dropout, dropout_training, masked_autoencoder, masks, several_layers
from referee.redone import together

CLAIMS, DIVERGES = together(
    dropblock, dropout, dropout_training, masked_autoencoder, masks, several_layers
)
