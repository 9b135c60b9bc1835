"""GGUF files in: metadata, weights of eleven block formats, the config and the tokenizer in Hugging Face's terms.

file = gguf.read(path)                     the header; nothing else is read yet
gguf.config(file)                          keys of a config.json
dict(gguf.weights(file))                   the state dict, float32
gguf.tokenizer(file)                       a foretell.tokenizer.Tokenizer
file.metadata["tokenizer.chat_template"]   for foretell.tokenizer.chat.recognise
"""

from __future__ import annotations

from foretell.models.gguf.blocks import dequantize, tensor
from foretell.models.gguf.names import config, stored, weights
from foretell.models.gguf.reader import Gguf, TensorInfo, read
from foretell.models.gguf.vocabulary import tokenizer

__all__ = ["Gguf", "TensorInfo", "config", "dequantize", "read", "stored", "tensor", "tokenizer", "weights"]
