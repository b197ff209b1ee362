"""Secateur prunes trained PyTorch networks, exactly, and says whether it was worth it."""

from .graph import trace as trace
from .plan import Plan as Plan

__all__ = ["Plan", "trace"]
