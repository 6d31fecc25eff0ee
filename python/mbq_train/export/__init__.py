"""A trained network in the forms that others read."""

from .store import export_store

__all__ = ["export_store"]
