"""Language models on disk, pruned block by block, so that they need not fit into memory."""

from .blockwise import SparseLanguageModel as SparseLanguageModel
from .blockwise import sparsify_language_model as sparsify_language_model

__all__ = ["SparseLanguageModel", "sparsify_language_model"]
