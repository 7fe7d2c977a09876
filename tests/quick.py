"""What tests do without, here and in the processes that they start: rules loaded again, pictures nobody looks at."""

from functools import cache
from pathlib import Path

from formats.files import replacing
from running import figures
from text_utils import WordSplitter

# spaCy's rules take half a second to load: once a process, for all splitters
load_rules = WordSplitter.nlp.func


@cache
def english():
    return load_rules(WordSplitter())


def shared_rules(_: WordSplitter):
    return english()


WordSplitter.nlp.func = shared_rules

# a picture takes a second to lay out and to write: only tests marked `pictures` have theirs
save_picture = figures.save
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def save_signature(_, path: Path) -> None:
    """Write the beginning of a picture where the picture would be."""
    with replacing(path) as file:
        file.write(SIGNATURE)


figures.save = save_signature
