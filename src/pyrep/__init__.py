"""Disaster recovery for hosts that keep one SQLite database per tenant."""

__all__ = ["__version__"]

__version__ = "0.1.0"
