"""Sweeps and studies over many machines: parts become tasks of Dask, which schedules them.

Its modules alone know Dask, and are imported when a cluster is asked for.
"""

ADDRESS = "local:N or the address of a Dask scheduler such as tls://127.0.0.1:8786"
"""What a command takes for a cluster, in words."""
