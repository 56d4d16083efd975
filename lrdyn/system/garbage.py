"""How often a command looks for garbage."""

import gc


def collect_rarely() -> None:
    """Look for garbage less often: tracing makes many objects that stay, and little garbage."""
    # Everything imported so far stays to the end: it need not be looked through each time.
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)
