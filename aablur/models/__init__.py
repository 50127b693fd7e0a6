"""Whole models in, whole models out."""
