"""Typed configuration: load, check, expand directories to tenants."""
