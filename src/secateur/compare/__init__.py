"""Experiments as data, results in SQLite, and one answer: was pruning worth it?"""
