"""How fast and how large: ours and transformers in turn, one plain script a question."""
