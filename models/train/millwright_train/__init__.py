"""Trains models on historian exports and packs them for a Millwright gateway.

Reading order: `history` (exports) → `windows` → `kinds` (what can be trained) → `sklearn_*`, `torch_models`,
`keras_models` → `check` (the exported file against its library) → `contract` (the file's metadata) → `pack`.
"""

__version__ = "0.1.0"
