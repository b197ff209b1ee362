"""Save and load a shrunk or sparse model: two files, ``model.safetensors`` and ``secateur.json``, never a pickle."""

from .loading import load as load
from .loading import read_record as read_record
from .record import BudgetNote as BudgetNote
from .record import Details as Details
from .record import StoredModel as StoredModel
from .saving import annotate_ as annotate_
from .saving import save as save

__all__ = ["BudgetNote", "Details", "StoredModel", "annotate_", "load", "read_record", "save"]
