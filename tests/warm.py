"""Imported by the server that tests branch processes off: loads what a command would load late."""

import ftfy  # noqa: F401
import matplotlib.backends.backend_agg  # noqa: F401
import matplotlib.figure  # noqa: F401
import pandas  # noqa: F401
import scipy.stats  # noqa: F401
import sklearn.model_selection  # noqa: F401
import spacy_legacy  # noqa: F401
import spacy_loggers  # noqa: F401
import tokenizers  # noqa: F401
import torch._dynamo  # noqa: F401

from text_utils import _english

_english()
