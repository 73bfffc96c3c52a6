"""The built-in corpus: short notes to be routed to a hospital department.

A note names findings of several departments. One finding is affirmed and determines the label; the
others are denied or historical. Counting words is therefore not enough: a model must learn which
cue belongs to which finding. Every site has its own style (its share of each department,
abbreviations, typing errors, preferred phrases, punctuation), so the clients differ naturally. All
notes are generated from a seed. Nothing is downloaded and no line comes from a patient.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from random import Random
from typing import TypeVar

T = TypeVar("T")

NOTES_PER_SITE = 400
TEST_NOTES = 1000
TEST_SITES = 20

WHOLE = 2**53  # `Random.random()` returns a multiple of 1 / WHOLE
PRECISION = Context(prec=28)  # 28 decimal digits

# Each finding in full, and as a clinician in a hurry writes it.
FINDINGS = {
    "cardiology": (
        ("chest pain", "cp"),
        ("palpitations", "palps"),
        ("irregular heartbeat", "irreg hb"),
        ("heart murmur", "murmur"),
        ("high blood pressure", "htn"),
        ("fainting on exertion", "syncope"),
        ("tight chest", "chest tightness"),
        ("swollen legs", "leg oedema"),
    ),
    "pulmonology": (
        ("asthma", "asthma attack"),
        ("shortness of breath", "sob"),
        ("productive cough", "prod cough"),
        ("wheezing", "wheeze"),
        ("coughing up blood", "haemoptysis"),
        ("pneumonia", "pna"),
        ("noisy breathing", "stridor"),
        ("low oxygen saturation", "low spo2"),
    ),
    "neurology": (
        ("severe headache", "ha"),
        ("numbness of the left arm", "l arm numbness"),
        ("seizure", "sz"),
        ("slurred speech", "dysarthria"),
        ("double vision", "diplopia"),
        ("loss of balance", "ataxia"),
        ("tremor", "shaking hands"),
        ("facial droop", "facial weakness"),
    ),
    "orthopedics": (
        ("ankle swelling", "swollen ankle"),
        ("knee pain", "gonalgia"),
        ("wrist fracture", "wrist fx"),
        ("shoulder dislocation", "dislocated shoulder"),
        ("lower back pain", "lbp"),
        ("torn ligament", "acl tear"),
        ("hip stiffness", "stiff hip"),
        ("bruised elbow", "elbow contusion"),
    ),
    "gastroenterology": (
        ("abdominal pain", "abd pain"),
        ("vomiting", "emesis"),
        ("heartburn", "gord"),
        ("blood in stool", "melaena"),
        ("diarrhoea", "loose stools"),
        ("difficulty swallowing", "dysphagia"),
        ("yellow eyes", "jaundice"),
        ("bloating", "distension"),
    ),
    "dermatology": (
        ("itchy rash", "pruritic rash"),
        ("eczema", "atopic dermatitis"),
        ("new mole", "naevus"),
        ("hives", "urticaria"),
        ("infected wound", "cellulitis"),
        ("blisters", "bullae"),
        ("hair loss", "alopecia"),
        ("scaly skin", "psoriasis"),
    ),
}
LABELS = tuple(sorted(FINDINGS))

AFFIRMED = (
    "presents with {}",
    "c/o {}",
    "reports {}",
    "complains of {}",
    "now {}",
    "worsening {}",
    "{} since yesterday",
    "new onset {}",
    "brought in for {}",
    "acute {}",
)
DENIED = (
    "denies {}",
    "no {}",
    "without {}",
    "negative for {}",
    "no sign of {}",
    "{} denied",
    "not {}",
    "never had {}",
)
HISTORICAL = (
    "hx of {}",
    "history of {}",
    "previous {}",
    "past {}",
    "prior {}",
    "{} resolved",
    "old {}",
    "once had {}",
)
PATIENTS = ("pt", "patient", "m", "f", "male", "female", "adult", "child")
SEPARATORS = (". ", ", ", "; ", " / ", " - ")


@dataclass(frozen=True)
class Note:
    """One example: its `text`, the department as its `label`, and the number of its `site`."""

    text: str
    label: str
    site: int


class _Site:
    """One hospital, whose style is drawn from the seed once."""

    def __init__(self, seed: int, name: str) -> None:
        self.rng = Random(f"triage/{seed}/{name}")
        # A Dirichlet(1) draw (normalised exponentials), plus a minimum for every department.
        self.class_mix = [int(WHOLE * (self._exponential() + 0.2)) for _ in LABELS]
        self.abbreviates = 0.8 * self.rng.random()
        self.mistypes = 0.06 * self.rng.random()
        self.separator = self._pick(SEPARATORS)
        self.upper = self.rng.random() < 0.2
        self.phrases = [self._some(cues, 6) for cues in (AFFIRMED, DENIED, HISTORICAL)]

    def write(self) -> tuple[str, str]:
        """Write one note and return its text and label."""
        label = self._weighted(LABELS, self.class_mix)
        affirmed, denied, historical = self.phrases
        clauses = [self._pick(affirmed).format(self._finding(label))]
        for _ in range(1 + int(self.rng.random() * 3)):
            findings = [self._finding(self._pick(LABELS))]
            if self.rng.random() < 0.5:
                cues = denied
                if self.rng.random() < 0.3:
                    findings.append(self._finding(self._pick(LABELS)))
            else:
                cues = historical
            clauses.append(self._pick(cues).format(" or ".join(findings)))
        self._shuffle(clauses)
        age = 1 + int(self.rng.random() * 95)
        text = self.separator.join([f"{self._pick(PATIENTS)} {age}y", *clauses])
        words = [self._mistype(word) for word in text.split(" ")]
        text = " ".join(words)
        return (text.upper() if self.upper else text), label

    def _finding(self, department: str) -> str:
        spelt, abbreviated = self._pick(FINDINGS[department])
        return abbreviated if self.rng.random() < self.abbreviates else spelt

    def _mistype(self, word: str) -> str:
        if len(word) < 5 or self.rng.random() >= self.mistypes:
            return word
        at = 1 + int(self.rng.random() * (len(word) - 2))
        if self.rng.random() < 0.5:
            return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        return word[:at] + self._pick(string.ascii_lowercase) + word[at + 1 :]

    # Only Random.random() is guaranteed to give the same numbers in every Python version.
    def _pick(self, items: Sequence[T]) -> T:
        return items[int(self.rng.random() * len(items))]

    def _exponential(self) -> float:
        # The logarithm of `math` depends on the processor, that of `decimal` does not.
        return float(-Decimal(1 - self.rng.random()).ln(PRECISION))

    # In integers, because Python 3.12 adds floats in another way than 3.11.
    def _weighted(self, items: Sequence[T], weights: Sequence[int]) -> T:
        left = int(WHOLE * self.rng.random()) * sum(weights)
        for item, weight in zip(items, weights, strict=True):
            left -= WHOLE * weight
            if left < 0:
                return item
        return items[-1]

    def _shuffle(self, items: list[T]) -> None:
        for last in range(len(items) - 1, 0, -1):
            other = int(self.rng.random() * (last + 1))
            items[last], items[other] = items[other], items[last]

    def _some(self, items: Sequence[T], count: int) -> list[T]:
        shuffled = list(items)
        self._shuffle(shuffled)
        return shuffled[:count]


def site_notes(seed: int, site: int) -> list[Note]:
    """Return the `NOTES_PER_SITE` training notes of site number `site`, which is at least 0."""
    writer = _Site(seed, f"site-{site}")
    return [Note(*writer.write(), site) for _ in range(NOTES_PER_SITE)]


def test_notes(seed: int) -> list[Note]:
    """Return `TEST_NOTES` notes of `TEST_SITES` other sites, numbered -1, -2 and so on."""
    sites = [(-1 - k, _Site(seed, f"test-{k}")) for k in range(TEST_SITES)]
    return [
        Note(*writer.write(), number)
        for number, writer in sites
        for _ in range(TEST_NOTES // TEST_SITES)
    ]
