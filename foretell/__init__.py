"""Foretell: one toolkit for the whole life of a language model, forecast first."""

__version__ = "0.1.0"
