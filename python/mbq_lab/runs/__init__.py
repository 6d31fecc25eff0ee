"""Runs in a folder: training, resuming, measuring, and what they leave on disk."""
