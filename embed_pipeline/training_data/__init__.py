"""Accepted pairs to a split, hard negatives and training examples.

In: the tables ``qa_dataset`` and ``corpus``, and labels that people made. Out: ``dataset_split``, ``hard_negatives``,
``training_examples``.
Read in this order: ``pair_labels``, ``label_files``, ``labels`` and ``pair_sources`` (where pairs come from),
``near_duplicates``, ``split``, ``questions`` (what is mined for, augmentation included), ``candidates`` (the ceiling
under the positive), ``cross_check`` (second opinions), ``negatives``, ``audit`` (figures for a person).
``dataset_export`` writes the data in other tools' formats.
"""
