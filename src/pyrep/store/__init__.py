"""The set of tenants and the machinery that moves them: sweep, scheduler, pools, drain."""

from pyrep.store.drain import Unsent
from pyrep.store.entry import ManagedTenant
from pyrep.store.maintenance import Schedule
from pyrep.store.store import Store

__all__ = ["ManagedTenant", "Schedule", "Store", "Unsent"]
