"""Secateur prunes trained PyTorch networks, exactly, and says whether it was worth it."""
