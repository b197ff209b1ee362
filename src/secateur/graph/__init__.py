"""Which channels of a model live and die together. Knows nothing of methods."""

from .groups import ChannelGraph as ChannelGraph
from .groups import ChannelGroup as ChannelGroup
from .groups import Member as Member
from .groups import trace as trace

__all__ = ["ChannelGraph", "ChannelGroup", "Member", "trace"]
