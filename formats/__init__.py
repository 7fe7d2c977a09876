"""Files of others, read and written: lines of examples, the authors' model folder, Hugging Face's."""
