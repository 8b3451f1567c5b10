"""Writes a trained network for use outside of capsjax, one format a module."""
