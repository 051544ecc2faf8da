"""One module for each command of ``pyrep-bench``."""

__all__: list[str] = []
