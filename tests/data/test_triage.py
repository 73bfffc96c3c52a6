"""The built-in corpus is reproducible, differs between sites and is hard for a bag of words."""

from collections import Counter

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from fedattn_app.data import triage

# Another name, because pytest would collect a function called test_*.
held_out_notes = triage.test_notes


def test_a_seed_gives_the_same_notes_each_time():
    assert triage.site_notes(1, 3) == triage.site_notes(1, 3)
    assert held_out_notes(1) == held_out_notes(1)


def test_notes_differ_between_seeds_and_sites():
    notes = [triage.site_notes(seed, site) for seed in (1, 2) for site in (0, 1)]
    notes += [held_out_notes(1), held_out_notes(2)]
    for index, first in enumerate(notes):
        for second in notes[index + 1 :]:
            shared = {n.text for n in first} & {n.text for n in second}
            assert len(shared) < 0.05 * len(second)


def test_the_number_of_notes_and_their_sites():
    notes = triage.site_notes(1, 7)
    assert len(notes) == triage.NOTES_PER_SITE
    assert {note.site for note in notes} == {7}
    held_out = held_out_notes(1)
    assert len(held_out) == triage.TEST_NOTES
    assert {note.site for note in held_out} == {-1 - k for k in range(triage.TEST_SITES)}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_label_occurs_in_the_test_notes(seed):
    assert {note.label for note in held_out_notes(seed)} == set(triage.LABELS)


def test_sites_differ_in_their_mix_of_labels():
    shares = []
    for site in range(10):
        counts = Counter(note.label for note in triage.site_notes(1, site))
        shares.append([counts[label] / triage.NOTES_PER_SITE for label in triage.LABELS])
    distances = [
        sum(abs(a - b) for a, b in zip(first, second, strict=True)) / 2
        for index, first in enumerate(shares)
        for second in shares[index + 1 :]
    ]
    # Total variation distance; two samples of 400 notes from one site would have about 0.06.
    assert min(distances) > 0.1
    assert sum(distances) / len(distances) > 0.3


@pytest.mark.parametrize("seed", [1, 2])
def test_a_bag_of_words_is_better_than_guessing_and_far_from_perfect(seed):
    train = [note for site in range(10) for note in triage.site_notes(seed, site)]
    held_out = held_out_notes(seed)
    bag_of_words = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=500))
    bag_of_words.fit([n.text for n in train], [n.label for n in train])
    accuracy = bag_of_words.score([n.text for n in held_out], [n.label for n in held_out])
    most_common = Counter(n.label for n in held_out).most_common(1)[0][1] / len(held_out)
    assert most_common + 0.15 < accuracy < 0.75
