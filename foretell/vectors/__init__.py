"""Word vectors: Word2Vec (through gensim) and GloVe (our own), their files, neighbours, scores, and a map.

Only what trains or draws imports torch or gensim, and then inside its functions: a look-up answers at once.
See docs/vectors.md; the folder's format stands in docs/formats.md.
"""

from foretell.vectors.folder import Folder, load, open_folder
from foretell.vectors.formats import Vectors
from foretell.vectors.scoring import analogies, similarity
from foretell.vectors.similar import analogy, nearest
from foretell.vectors.training import Settings, train
from foretell.vectors.wordmap import chart

__all__ = [
    "Folder",
    "Settings",
    "Vectors",
    "analogies",
    "analogy",
    "chart",
    "load",
    "nearest",
    "open_folder",
    "similarity",
    "train",
]
