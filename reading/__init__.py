"""From text to the rows of the model's input: data sets, token ids, rows, splits, a corpus."""
