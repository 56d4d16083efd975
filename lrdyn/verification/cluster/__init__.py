"""Sweeps and studies over many machines: parts become tasks of Dask, which schedules them.

Nothing here is imported unless a cluster is asked for, and only this package knows Dask.
"""
