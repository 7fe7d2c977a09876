"""The Story Cloze Test as columns for a notebook; the records of all data sets, which stand in reading/tasks.py.

Common public sets are read as own data: put the file into DIR as `train` with its suffix, its others as `valid` and
`test` if there are any, and run `python train.py --dataset own --data_dir DIR` with

    SMS spam (UCI)        --task classification --columns label=0,text=1
    SMS spam (Kaggle)     --task classification --columns label=v1,text=v2 --encoding latin-1
    UCI sentences         --task classification --columns text=0,label=1
    GermEval 2018         --task classification --columns text=0,label=1
    AG news               --task classification --columns label=0,text=2
    SICK                  --task entailment --columns premise=sentence_A,hypothesis=sentence_B,label=entailment_judgment
    amazon reviews        --task classification --columns label=0,text=2
    yelp reviews          --task classification --columns label=0,text=1
    emotion               --task classification --columns text=0,label=1
    10kGNAD               --task classification --columns label=0,text=1
    TREC                  --task classification --columns label=coarse_label
    IMDB                  --task classification --columns text=review,label=sentiment
    COPA                  --task multiple_choice --first_choice 0
      --columns context=premise,choice_1=choice1,choice_2=choice2
    XCOPA                 --task multiple_choice --first_choice 0
      --columns context=premise,choice_1=choice1,choice_2=choice2
    SWAG                  --task multiple_choice --first_choice 0
      --columns context=startphrase,choice_1=ending0,choice_2=ending1,choice_3=ending2,choice_4=ending3
    ARC                   --task multiple_choice
      --columns context=question.stem,choices=question.choices.text,label=answerKey
    CommonsenseQA         --task multiple_choice
      --columns context=question.stem,choices=question.choices.text,label=answerKey
    BoolQ                 --task entailment --columns premise=passage,hypothesis=question,label=answer
    CB                    --task entailment
    WiC                   --task similarity --columns text_a=sentence1,text_b=sentence2
    financial phrasebank  --task classification --columns text=0,label=1 --encoding latin-1
    airline tweets        --task classification --columns label=airline_sentiment
    disaster tweets       --task classification --columns label=target
    banking77             --task classification --columns label=category
    MRPC                  --dataset mrpc
"""

import os
from pathlib import Path

import numpy as np

from reading.tasks import (  # noqa: F401  public names of this file
    ROCSTORIES_TEST,
    ROCSTORIES_VALID,
    SPLIT_SEED,
    TASKS,
    Source,
    Task,
    find_task,
    hold_out,
    read_cloze,
)

seed = SPLIT_SEED  # the authors' name
Columns = tuple[list[str], list[str], list[str], np.ndarray]  # stories, first endings, second endings, labels
Texts = tuple[list[str], list[str], list[str]]  # the same without labels


def rocstories(
    data_dir: str | os.PathLike, n_valid: int = 374, *, n_train: int = 1497
) -> tuple[Columns, Columns, Texts]:
    """Return the train, valid and test columns of the Story Cloze Test, Spring 2016, for use in a notebook.

    Train and valid are (stories, first endings, second endings, labels), the authors' split of the published valid
    file; test is the same without labels (datasets.py:30-38). A story is its four sentences joined with a space, a
    label 0 or 1.

    Args:
        data_dir: folder of the two official files.
        n_valid: examples of valid.
        n_train: taken and not used, as by the authors: train is what valid leaves.

    Raises:
        InputError: a file is missing, unreadable or malformed, or holds too few examples for n_valid.
    """
    folder = TASKS["rocstories"].find(Path(data_dir))
    *columns, labels = read_cloze(folder / ROCSTORIES_VALID)
    train, valid = hold_out(labels, n_valid, SPLIT_SEED, False, folder / ROCSTORIES_VALID)
    *test, _ = read_cloze(folder / ROCSTORIES_TEST)
    return _chosen(columns, labels, train), _chosen(columns, labels, valid), tuple(test)


def _chosen(columns: list[list[str]], labels: np.ndarray, which: np.ndarray) -> Columns:
    texts = [[column[i] for i in which] for column in columns]
    return *texts, labels[which]


def _rocstories(path: str | os.PathLike) -> tuple[list[str], list[str], list[str], list[int]]:
    """Read one file of the Story Cloze Test as four lists. Raises InputError that names file, line and remedy."""
    *columns, labels = read_cloze(Path(path))
    return *columns, labels.tolist()
