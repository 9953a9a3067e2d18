"""Core dumps are disabled, because the memory of a process contains passwords and tokens."""

import resource


def disable_core_dumps() -> None:
    """Set the limit of this process and its children to 0; without privileges it cannot rise."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
