"""A second opinion: what lrdyn claims, checked by code that shares nothing with it.

Nothing here imports lrdyn or JAX.
"""
