"""Documents in, token shards out, training batches from them. See docs/data.md and docs/formats.md."""

from foretell.data.build import prepare, render_funnel
from foretell.data.loader import batch, place
from foretell.data.readers import documents
from foretell.data.records import Document
from foretell.data.shards import Data, open_data
from foretell.data.tasks import pair_of
from foretell.data.texts import texts

__all__ = [
    "Data",
    "Document",
    "batch",
    "documents",
    "open_data",
    "pair_of",
    "place",
    "prepare",
    "render_funnel",
    "texts",
]
