"""Whole models in, whole models out: where they alias, and their repair."""

from .audit import audit

__all__ = ["audit"]
